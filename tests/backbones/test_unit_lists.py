"""The units of the backbones that ship, and of one that keeps its blocks in places of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, BlockRunner, run_plain
from tinyfusion.backbones.coupling import coupling
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.sit import SiT
from tinyfusion.backbones.width_plan import WidthGroup, WidthPlan
from tinyfusion.errors import InputError
from tinyfusion.metrics.speed import macs
from tinyfusion.surgery import prune

SMALL = {"input_size": 4, "in_channels": 1, "hidden_size": 16, "num_heads": 2, "num_classes": 3}


def mar() -> MAR:
    return MAR(4, 16, 2, 3, 2, in_channels=1, num_classes=3, buffer_size=2, head_depth=1,
               head_width=20)  # fmt: skip


@pytest.mark.parametrize(
    "make", [lambda: DiT(**SMALL, depth=3), lambda: SiT(**SMALL, depth=3), mar]
)
def test_what_blocks_cost_is_what_the_network_costs_less_without_them(make) -> None:
    net = make()
    blocks = net.units(macs=True)
    assert [unit.index for unit in blocks] == list(range(net.depth))
    total = sum(p.numel() for p in net.parameters())
    for unit in blocks:
        assert unit.parameters == sum(p.numel() for p in net.blocks[unit.index].parameters())
        rest = prune(net, [i for i in range(net.depth) if i != unit.index])
        assert unit.macs == macs(net) - macs(rest)
        assert unit.parameters == total - sum(p.numel() for p in rest.parameters())
    rest = macs(net) - sum(unit.macs for unit in blocks)
    assert 0 < rest == macs(prune(net, [0])) - blocks[0].macs
    assert all(unit.macs is None and unit.seconds is None for unit in net.units())


def test_places_count_blocks_within_their_stack() -> None:
    net = mar()
    names = [f"encoder_blocks.{i}" for i in range(2)] + [f"decoder_blocks.{i}" for i in range(3)]
    assert [unit.name for unit in net.units()] == names
    intervals = net.units("intervals", macs=True)
    assert [unit.name for unit in intervals] == [
        *("encoder_blocks.0:2", "decoder_blocks.0:2", "decoder_blocks.0:3", "decoder_blocks.1:3")
    ]
    assert [list(unit.blocks) for unit in intervals] == [[0, 1], [2, 3], [2, 3, 4], [3, 4]]
    blocks = net.units(macs=True)
    assert all(u.macs == sum(blocks[i].macs for i in u.blocks) > 0 for u in intervals)
    # As they now are, and with an empty stack.
    pruned = prune(net, [3, 4])
    assert [unit.name for unit in pruned.units()] == ["decoder_blocks.0", "decoder_blocks.1"]


@pytest.mark.parametrize("make", [lambda: DiT(**SMALL, depth=2), mar])
def test_channels_are_the_groups_of_the_width_plan(make) -> None:
    net = make()
    units = net.units("channels")
    assert {unit.name: unit.size for unit in units} == coupling(net).units
    places = {unit.name: unit.index for unit in units}
    if isinstance(net, DiT):
        assert places["residual"] is None and places["blocks.1.heads"] == 1
        assert next(u for u in units if u.name == "blocks.1.heads").size == 2
    else:
        assert places["encoder"] is None and places["decoder_blocks.0.neurons"] == 2


class Elsewhere(Backbone):
    """Blocks that are attributes, not in a list of the network's."""

    in_channels, input_size, num_classes = 1, 4, 3

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    @property
    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList([self.first, self.second])

    def config(self) -> dict[str, Any]:
        return {}

    def width_plan(self) -> WidthPlan:
        return WidthPlan((WidthGroup("all", "width", "third"),))

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, run_block: BlockRunner = run_plain
    ) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = run_block(index, lambda x, _, block=block: x + block(x), x, None)
        return x


def test_blocks_without_a_list_are_named_by_their_number() -> None:
    net = Elsewhere()
    assert [unit.name for unit in net.units(macs=True)] == ["blocks.0", "blocks.1"]
    assert [unit.macs for unit in net.units(macs=True)] == [4 * 4 * 4] * 2
    with pytest.raises(InputError, match="the width plan of Elsewhere does not fit it: 'third'"):
        net.units("channels")


def test_leaving_all_units_out_is_the_network_without_blocks() -> None:
    net = DiT(**SMALL, depth=2)
    for parameter in net.parameters():
        nn.init.normal_(parameter.data, std=0.2)
    inputs = net.example_inputs(2)
    without = net.run_units("blocks", lambda number, unit, states, condition: states)
    skipped = net(*inputs, run_block=lambda index, block, states, condition: states)
    assert torch.equal(net(*inputs, run_block=without), skipped)
    assert not torch.equal(skipped, net(*inputs))
