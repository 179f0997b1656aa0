"""A teacher that no optimiser, wrapper or checkpoint ever sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, forward_with_states
from tinyfusion.conditioning import Conditioning
from tinyfusion.states import States


class FrozenTeacher:
    """Holds a network in evaluation mode without being an ``nn.Module`` itself.

    So a LightningModule that owns it keeps no copy in its state dict, and DDP and FSDP do not
    wrap it.
    """

    def __init__(self, net: Backbone) -> None:
        self.net = net.requires_grad_(False).eval()

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move the network."""
        self.net.to(device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self

    @torch.no_grad()
    def __call__(
        self, inputs: Sequence[Tensor], conditioning: Conditioning, wanted: Iterable[int]
    ) -> tuple[Tensor, dict[int, States]]:
        """Prediction and hidden states after the ``wanted`` blocks."""
        return forward_with_states(self.net, inputs, conditioning, wanted)
