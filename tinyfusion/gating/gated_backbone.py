"""A backbone whose blocks are switched per sample by a sampled mask.

Shape suffixes: B batch, T tokens, D width, K choices, L blocks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, run_plain
from tinyfusion.gating.gates import Gates


class GatedBackbone(nn.Module):
    """Runs every block for every sample and blends it out where the mask is 0.

    ``h <- m * B(h, c) + (1 - m) * h`` (TinyFusion, section 3): the mask acts on the whole block,
    skip connection included, so a dropped block costs a forward pass but gives its gate a
    gradient.

    Raises:
        AssertionError: gates of another depth than the network's.
    """

    def __init__(self, net: Backbone, gates: Gates) -> None:
        super().__init__()
        assert gates.scheme.depth == net.depth
        self.net = net
        self.gates = gates

    def forward(self, *inputs: Tensor, gumbel_BK: Tensor) -> Tensor:
        """Predict with a mask drawn per sample from the gates; inputs as the backbone's."""
        keep_BL = self.gates(gumbel_BK)

        def run_gated(index: int, block: nn.Module, states_BTD: Tensor, condition: Any) -> Tensor:
            # Of the states' type, not of the inputs', which may be integers.
            keep_B = keep_BL[:, index].to(states_BTD.dtype)
            keep_B11 = keep_B.view(-1, *[1] * (states_BTD.ndim - 1))
            out_BTD = run_plain(index, block, states_BTD, condition)
            return keep_B11 * out_BTD + (1 - keep_B11) * states_BTD

        return self.net(*inputs, run_block=run_gated)
