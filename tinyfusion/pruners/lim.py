"""LIM: drop the units that turn the state as a whole least (arXiv 2406.17415).

Shape suffixes: B batch, K units that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.pruners.scored import Scored, measured
from tinyfusion.states import States, streams


class LIM(Scored):
    """Removal of the units with the lowest layer input modification.

    ``LIM_i = -E cos(h_i, h_{i+1})`` of a sample's whole state as one vector: all entries of all
    tokens of all streams. The cosine of each token by itself, and then the mean, is what
    `tinyfusion.pruners.shortgpt.ShortGPT` takes; of states of one token both are in one order.
    """

    name: ClassVar[str] = "lim"
    criterion: ClassVar[str] = "lim"

    def scores(self, net: Backbone, calibration: Any, kept: Sequence[int]) -> Tensor:
        """From -1 of a unit that leaves the state's direction alone to 1."""

        def cosine_B(states: States, out: States) -> Tensor:
            return F.cosine_similarity(_flat(out), _flat(states), dim=1)

        return -measured(net, calibration, kept, cosine_B).mean(0)


def _flat(states: States) -> Tensor:
    """The entries of each sample, shape (B, ...)."""
    return torch.cat([stream.flatten(1) for stream in streams(states)], 1).float()
