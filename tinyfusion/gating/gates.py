"""Learned choice among the keep-patterns of every group (TinyFusion, section 3).

Shape suffixes: B batch, C choices of one group, M positions of one group, L units, K all choices
of all groups side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tinyfusion.scheme import BlockGroup, Scheme

START_LOGIT = 0.02
"""Start value of every logit; equal values make the start exactly uniform."""


class GroupGate(nn.Module):
    """A categorical distribution over the keep-patterns of one group.

    Attributes:
        patterns: numbers of the kept units of every pattern; listed once, there can be thousands.
    """

    choices_CM: Tensor

    def __init__(self, group: BlockGroup) -> None:
        super().__init__()
        choices = group.choices()
        self.patterns = [tuple(group.start + m for m in kept) for kept in choices]
        rows = [[float(m in kept) for m in range(group.size)] for kept in choices]
        self.register_buffer("choices_CM", torch.tensor(rows), persistent=False)
        self.logits_C = nn.Parameter(torch.full((len(rows),), START_LOGIT))

    def soft_choice(self, gumbel_BC: Tensor, temperature: float, scale: float) -> Tensor:
        """Gumbel-softmax relaxation of one draw per sample, shape (B, C)."""
        return ((scale * self.logits_C + gumbel_BC) / temperature).softmax(-1)

    def forward(self, gumbel_BC: Tensor, temperature: float, scale: float) -> Tensor:
        """One hard keep-pattern per sample with straight-through gradients, shape (B, M)."""
        # Outside autocast: a bfloat16 product would round the gradient of the logits.
        with torch.autocast(gumbel_BC.device.type, enabled=False):
            soft_BC = self.soft_choice(gumbel_BC, temperature, scale)
            hard_BC = F.one_hot(soft_BC.argmax(-1), soft_BC.shape[-1]).to(soft_BC.dtype)
            # Forward value hard, gradient of soft; zeros are exact because x - x is.
            return (hard_BC - soft_BC.detach() + soft_BC) @ self.choices_CM


class Gates(nn.Module):
    """Gates of all groups of a scheme.

    Args:
        scheme: the groups, laid over the units of one kind (`Backbone.units`), such as blocks.

    Attributes:
        temperature: Gumbel-softmax temperature, set by the schedule.
        scale: factor between logits and log-probabilities, set by the schedule.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        # A ModuleList does not say what it holds.
        gates = nn.ModuleList(GroupGate(group) for group in scheme.groups)
        self.groups = cast("Sequence[GroupGate]", gates)
        self.temperature = 1.0
        self.scale = 1.0

    @property
    def num_choices(self) -> int:
        """Logits of all groups together."""
        return sum(group.num_choices for group in self.scheme.groups)

    def forward(self, gumbel_BK: Tensor) -> Tensor:
        """Sample a mask per sample.

        Args:
            gumbel_BK: Gumbel(0, 1) noise for every choice of every group, groups side by side.

        Returns:
            1 for kept and 0 for dropped units, shape (B, L), differentiable in the logits.
        """
        parts = gumbel_BK.split([gate.logits_C.numel() for gate in self.groups], dim=-1)
        return torch.cat(
            [
                gate(part, self.temperature, self.scale)
                for gate, part in zip(self.groups, parts, strict=True)
            ],
            dim=-1,
        )

    def logits(self) -> list[Tensor]:
        """Detached copies of the logits, one tensor (C,) per group.

        Sharded logits are gathered: all ranks must call this together.
        """
        logits = [gate.logits_C.detach() for gate in self.groups]
        return [v.full_tensor() if isinstance(v, DTensor) else v.clone() for v in logits]

    def probabilities(self, logits: list[Tensor] | None = None) -> list[Tensor]:
        """``softmax(scale * logits)`` per group, of the given or the live logits."""
        logits = self.logits() if logits is None else logits
        return [(self.scale * values.float()).softmax(-1) for values in logits]

    def decide(self, logits: list[Tensor] | None = None) -> tuple[int, ...]:
        """Most probable pattern of every group as numbers of the kept units."""
        choice = likeliest(self.logits() if logits is None else logits)
        patterns = (gate.patterns[i] for gate, i in zip(self.groups, choice, strict=True))
        return tuple(unit for kept in patterns for unit in kept)


def likeliest(logits: list[Tensor]) -> list[int]:
    """Index of the most probable pattern of each group, in the order of `BlockGroup.choices`."""
    return [int(values.argmax()) for values in logits]


def entropy(probabilities: list[Tensor]) -> list[float]:
    """Entropy of each group's distribution, in nats."""
    return [float(-(p * p.clamp(min=1e-30).log()).sum()) for p in probabilities]
