"""A backbone whose units are switched per sample by a sampled mask.

Shape suffixes: B batch, K noise numbers, L units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tinyfusion.backbones.branches import Branch
from tinyfusion.backbones.contract import Backbone, predict, run_plain
from tinyfusion.conditioning import Conditioning
from tinyfusion.gating.contract import Gates
from tinyfusion.states import States, blend
from tinyfusion.units import Unit


class GatedBackbone(nn.Module):
    """Runs every unit for every sample and blends it out where the mask is 0.

    ``h <- m * B(h, c) + (1 - m) * h`` (TinyFusion, section 3): the mask acts on the whole block
    (or branch of a block), skip connection included, so a dropped one costs a forward pass but
    gives its gate a gradient.

    Args:
        net: the network.
        gates: one for each of its units.
        units: the units, listed before the weight update was attached; ``None`` for the blocks.

    Raises:
        AssertionError: gates for another number of units than the network has.
    """

    def __init__(self, net: Backbone, gates: Gates, units: Sequence[Unit] | None = None) -> None:
        super().__init__()
        self.units = net.units() if units is None else tuple(units)
        assert gates.count == len(self.units)
        self.net = net
        self.gates = gates

    def forward(
        self, inputs: Sequence[Tensor], conditioning: Conditioning, gumbel_BK: Tensor
    ) -> Tensor:
        """Predict with a mask drawn per sample from the gates.

        Args:
            inputs: see `predict`.
            conditioning: see `predict`.
            gumbel_BK: see `Gates`.
        """
        keep_BL = self.gates(gumbel_BK)

        def run_gated(number: int, unit: Branch, states: States, condition: Any) -> States:
            out = run_plain(number, unit, states, condition)
            return blend(keep_BL[:, number], out, states)

        run_block = self.net.run_units(self.units, run_gated)
        return predict(self.net, inputs, conditioning, run_block)
