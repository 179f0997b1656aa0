"""Which units a backbone has: its blocks, their branches, and its groups of channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import nn

from tinyfusion.backbones.branches import BranchedBlock
from tinyfusion.backbones.meta import shape_copy
from tinyfusion.backbones.width_plan import WidthPlan
from tinyfusion.errors import InputError
from tinyfusion.units import BLOCKS, BRANCHES, CHANNELS, Place, Unit


class UnitNetwork(Protocol):
    """What is asked of a backbone here."""

    blocks: nn.ModuleList

    def named_modules(self, *, remove_duplicate: bool) -> Iterator[tuple[str, nn.Module]]:
        """Of every module."""

    def get_submodule(self, target: str) -> nn.Module:
        """By name."""

    def width_plan(self) -> WidthPlan:
        """Groups of channels."""


def block_units(net: UnitNetwork) -> tuple[Unit, ...]:
    """The blocks, in order."""
    blocks = list(net.blocks)
    places: dict[int, Place] = {}
    wanted = {id(block) for block in blocks}
    for name, module in net.named_modules(remove_duplicate=False):
        if id(module) in wanted and name.rpartition(".")[2].isdecimal():
            places.setdefault(id(module), Place.parse(name))
    return tuple(
        # Blocks in no list of their own are named by the list of all.
        Unit(
            BLOCKS,
            places.get(id(block), Place(BLOCKS, index, index + 1)),
            index,
            sum(p.numel() for p in block.parameters()),
        )
        for index, block in enumerate(blocks)
    )


def branch_units(net: UnitNetwork) -> tuple[Unit, ...]:
    """The branches of all blocks that name them, in the order in which they run.

    Raises:
        InputError: no block names any.
    """
    units: list[Unit] = []
    for unit, block in zip(block_units(net), net.blocks, strict=True):
        if isinstance(block, BranchedBlock):
            units += _branches_of(unit, block)
    if not units:
        raise InputError(
            f"units=branches: the blocks of a {type(net).__name__} name no branches; derive their "
            "class from BranchedBlock (tinyfusion.backbones.branches), or give units=blocks"
        )
    return tuple(units)


def _branches_of(unit: Unit, block: BranchedBlock) -> Iterator[Unit]:
    place = unit.place
    for name in block.branches():
        rest = without(block, name)
        stays = sum(p.numel() for p in rest.parameters()) if rest is not None else 0
        yield Unit(
            BRANCHES,
            Place(place.stack, place.start, place.stop, name),
            unit.index,
            (unit.parameters or 0) - stays,
        )


def without(block: nn.Module, branch: str) -> nn.Module | None:
    """What a block would be without a branch, with shapes instead of values.

    What shares no parameter with the rest is known only by taking it away.

    Args:
        block: the block.
        branch: name of the branch; empty for all of the block.

    Returns:
        ``None`` if nothing would be left.
    """
    if not branch or not isinstance(block, BranchedBlock) or len(block.branches()) == 1:
        return None
    rest = shape_copy(block)
    rest.remove_branch(branch)
    return rest


def channel_units(net: UnitNetwork) -> tuple[Unit, ...]:
    """The groups of channels, heads and neurons of the width plan, in its order.

    Raises:
        InputError: the class has no width plan, or one that names a module without channels.
    """
    indices = {unit.place: unit.index for unit in block_units(net)}
    found = []
    for group in net.width_plan().groups:
        place = Place.parse(group.name)
        block = Place(place.stack, place.start, place.stop) if place.stack else None
        channels = _channels(net, group.module, group.inputs)
        index = None if block is None else indices.get(block)
        found.append(Unit(CHANNELS, place, index, None, size=channels // group.unit))
    return tuple(found)


def _channels(net: UnitNetwork, name: str, inputs: bool) -> int:
    """Channels that go into a linear layer or convolution, or come out of it."""
    try:
        module = net.get_submodule(name)
        sides = ("in_features", "in_channels") if inputs else ("out_features", "out_channels")
        return next(getattr(module, side) for side in sides if hasattr(module, side))
    except (AttributeError, StopIteration):
        raise InputError(
            f"the width plan of {type(net).__name__} does not fit it: {name!r} is no linear layer "
            "or convolution"
        ) from None
