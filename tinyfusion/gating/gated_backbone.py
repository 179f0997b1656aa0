"""A backbone whose blocks are switched per sample by a sampled mask.

Shape suffixes: B batch, K choices, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, predict, run_plain
from tinyfusion.conditioning import Conditioning
from tinyfusion.gating.gates import Gates
from tinyfusion.states import States, blend


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

        def run_gated(index: int, block: nn.Module, states: States, condition: Any) -> States:
            out = run_plain(index, block, states, condition)
            return blend(keep_BL[:, index], out, states)

        return predict(self.net, inputs, conditioning, run_gated)
