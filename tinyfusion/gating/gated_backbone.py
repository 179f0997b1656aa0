"""A backbone whose units are switched per sample by a sampled mask.

Shape suffixes: B batch, K noise numbers, L units.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tinyfusion.backbones.branches import Branch
from tinyfusion.backbones.contract import Backbone, predict, run_plain
from tinyfusion.conditioning import Conditioning
from tinyfusion.gating.contract import Gates
from tinyfusion.gating.sparse import UnitRows, rows_of_units, run_sparse
from tinyfusion.states import States, blend
from tinyfusion.units import Unit


class GatedBackbone(nn.Module):
    """Blends units out where the mask is 0: ``h <- m * B(h, c) + (1 - m) * h``.

    The mask acts on the whole block (or branch of a block), skip connection included (TinyFusion,
    section 3), so that a sample that drops a unit gives its gate a gradient. That takes the unit's
    output but no backward pass through it, and is how dropped pairs are run (see
    `tinyfusion.gating.sparse`). The gates' settled units are run for all samples or for none.

    Args:
        net: the network.
        gates: one for each of its units.
        units: the units, listed before the weight update was attached; ``None`` for the blocks.
        dense: run every unit for every sample with gradients instead, as the formula is written.
            Values and gradients are the same, but for what layers draw (dropout).
        gate_gradients: share of the dropped pairs that give their gate a gradient, see
            `forward`.

    Raises:
        AssertionError: gates for another number of units than the network has.
    """

    def __init__(
        self,
        net: Backbone,
        gates: Gates,
        units: Sequence[Unit] | None = None,
        dense: bool = False,
        gate_gradients: float = 1.0,
    ) -> None:
        super().__init__()
        self.units = net.units() if units is None else tuple(units)
        assert gates.count == len(self.units)
        self.net = net
        self.gates = gates
        self.dense, self.gate_gradients = dense, gate_gradients

    def forward(
        self,
        inputs: Sequence[Tensor],
        conditioning: Conditioning,
        gumbel_BK: Tensor,
        sampled_BL: Tensor | None = None,
    ) -> Tensor:
        """Predict with a mask drawn per sample from the gates.

        Args:
            inputs: see `predict`.
            conditioning: see `predict`.
            gumbel_BK: see `Gates`.
            sampled_BL: of the dropped pairs, which ones give their gate a gradient, boolean; drawn
                with probability ``gate_gradients``, whose inverse weights these gradients, so that
                they are the same on average. ``None`` for all.

        Raises:
            TypeError: blocks are told something of which rows are not known, see
                `Backbone.condition_rows`.
        """
        keep_BL = self.gates(gumbel_BK)
        settled = self.gates.settled
        rows: list[UnitRows] = []
        if not self.dense:
            # Of a sharded network all are; going through them takes longer than a small block.
            sharded = isinstance(next(self.net.parameters(), None), DTensor)
            kept_BL = keep_BL.detach() > 0.5
            rows = rows_of_units(
                kept_BL, sampled_BL, self.gate_gradients, sharded, self.gates.expected_share
            )

        def run_gated(number: int, unit: Branch, states: States, condition: Any) -> States:
            if number in settled:
                return run_plain(number, unit, states, condition) if settled[number] else states
            run, keep_B = partial(run_plain, number, unit), keep_BL[:, number]
            if self.dense:
                return blend(keep_B, run(states, condition), states)
            rows_here, condition_rows = rows[number], self.net.condition_rows
            return run_sparse(run, rows_here, keep_B, states, condition, condition_rows)

        run_block = self.net.run_units(self.units, run_gated)
        return predict(self.net, inputs, conditioning, run_block)
