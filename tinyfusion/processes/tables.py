"""Values per time of a chain, read wherever the data is.

Shape suffixes: B batch, S steps.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Tables:
    """Named tables with one value per time, computed in float64 on the CPU.

    Each is copied once per device and type that it is read in: a copy at every read would
    make an accelerator wait.

    Args:
        values_S: table by name, each of shape (S,).
    """

    def __init__(self, **values_S: Tensor) -> None:
        self._values_S = values_S
        self._copies_S: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Values at times ``t`` of shape (B,), with type, device and dimensions of ``like``.

        Returns:
            Shape (B, 1, ..., 1), rounded once, from float64.
        """
        key = (name, like.device, like.dtype)
        if key not in self._copies_S:
            # A copy made while sampling has to serve in training too.
            with torch.inference_mode(False):
                # Cast first: not every device has float64.
                self._copies_S[key] = self._values_S[name].to(like.dtype).to(like.device)
        return self._copies_S[key][t].view(-1, *[1] * (like.ndim - 1))
