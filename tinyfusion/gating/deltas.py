"""The co-trained weight update that stands in for the fine-tuning to come (TinyFusion, section 3).

Each class attaches an update to a network in place and leaves exactly its own parameters
trainable. The update is thrown away with the network after the decision.
"""

from __future__ import annotations

from torch import nn

from tinyfusion.errors import InputError


class Frozen:
    """No update: only the gates learn."""

    def attach(self, net: nn.Module) -> None:
        """Freeze every parameter of ``net``."""
        net.requires_grad_(False)


class Full:
    """Every weight is trained at the base rate (fixed tables stay fixed)."""

    def attach(self, net: nn.Module) -> None:
        """Leave ``net`` as it is: its own ``requires_grad`` flags say what is trained."""


class Lora:
    """Low-rank updates of every linear layer, by peft (arXiv 2106.09685).

    Args:
        rank: rank of each update.
        alpha: scaling; the update is multiplied by ``alpha / rank``.
        dropout: dropout probability before the update.

    Raises:
        InputError: a rank below 1, or a dropout outside [0, 1).
    """

    def __init__(self, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0) -> None:
        if rank < 1:
            raise InputError(f"delta.rank={rank} must be at least 1")
        if not 0 <= dropout < 1:
            raise InputError(f"delta.dropout={dropout} must be at least 0 and less than 1")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout

    def attach(self, net: nn.Module) -> None:
        """Freeze ``net`` and add an adapter to each of its linear layers."""
        from peft import LoraConfig, inject_adapter_in_model  # slow to import

        linears = [name for name, module in net.named_modules() if type(module) is nn.Linear]
        net.requires_grad_(False)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # only ever divided by the rank
            lora_dropout=self.dropout,
            target_modules=linears,
        )
        inject_adapter_in_model(config, net)
        if self.dropout == 0:
            from tinyfusion.gating.low_rank import LowRankLinear

            for name in linears:
                net.get_submodule(name).__class__ = LowRankLinear
