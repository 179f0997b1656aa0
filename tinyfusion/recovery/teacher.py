"""A teacher that no optimiser, wrapper or checkpoint ever sees."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, predict, run_plain
from tinyfusion.conditioning import Conditioning
from tinyfusion.states import States


class FrozenTeacher:
    """Holds a network in evaluation mode without being an ``nn.Module`` itself.

    So a LightningModule that owns it keeps no copy in its state dict, and DDP and FSDP do not
    wrap it.

    Attributes:
        dtype: what its matrix products are computed in, by autocast; ``None``: as the student's.
    """

    def __init__(self, net: Backbone) -> None:
        self.net = net.requires_grad_(False).eval()
        self.dtype: torch.dtype | None = None

    @property
    def is_rounded(self) -> bool:
        """Whether it is computed in less than float32 by its own choice."""
        return self.dtype not in (None, torch.float32)

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move the network."""
        self.net.to(device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self

    @torch.no_grad()
    def __call__(
        self,
        inputs: Sequence[Tensor],
        conditioning: Conditioning,
        wanted: Sequence[int],
        predicts: bool = True,
    ) -> tuple[Tensor | None, list[States]]:
        """Prediction, and the hidden states after each of the ``wanted`` blocks.

        Args:
            inputs: what the process made of clean data, each of shape (B, ...).
            conditioning: of the same samples.
            wanted: block indices, in any order; one may be named several times.
            predicts: whether the prediction is asked for; without it the blocks behind the last
                wanted one are not run, and ``None`` takes its place.
        """
        last = self.net.depth - 1 if predicts else max(wanted, default=-1)
        found: dict[int, States] = {}

        def runner(index: int, block: nn.Module, states: States, condition: Any) -> States:
            if index > last:
                return states
            states = run_plain(index, block, states, condition)
            if index in wanted:
                found[index] = states
            return states

        with self._computed_in_dtype():
            out = predict(self.net, inputs, conditioning, runner)
        return out if predicts else None, [found[block] for block in wanted]

    def _computed_in_dtype(self) -> AbstractContextManager[None]:
        if self.dtype is None:
            return nullcontext()
        device = next(self.net.parameters()).device.type
        if self.dtype == torch.float32:
            return torch.autocast(device, enabled=False)
        return torch.autocast(device, self.dtype)
