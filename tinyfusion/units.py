"""What can stay, go, be replaced or be resized: where it is in a network, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tinyfusion.errors import InputError

BLOCKS, BRANCHES, INTERVALS, CHANNELS = "blocks", "branches", "intervals", "channels"
"""Kinds of units: residual blocks; attention, MLP and the like inside a block; runs of at least
two consecutive blocks; groups of coupled channels, heads or neurons."""

_NUMBERS = re.compile(r"(?P<start>\d+)(?::(?P<stop>\d+))?")


@dataclass(frozen=True)
class Place:
    """Where a unit is, by a name that can be read back.

    ``blocks.3`` is a block, ``blocks.3.attn`` a part of it, ``blocks.4:9`` the blocks 4 to 8, and
    ``residual`` a part of the network that belongs to no block. Blocks are counted within their
    stack, as in the names of modules and tensors.

    Attributes:
        stack: name of the module list that holds the blocks; empty if there are none.
        start: number of the first block in that list.
        stop: number behind the last block.
        part: name of a branch or of a group of channels; empty for whole blocks.

    Raises:
        InputError: no block and no part, or blocks that end before they begin.
    """

    stack: str = ""
    start: int = 0
    stop: int = 0
    part: str = ""

    def __post_init__(self) -> None:
        if self.stack and not 0 <= self.start < self.stop:
            raise InputError(
                f"blocks {self.start}:{self.stop} of {self.stack} are none; valid: a first block "
                "and a later number, that of the block behind the last"
            )
        if not self.stack and not self.part:
            raise InputError("a place must name blocks of a stack, a part, or both")

    def __str__(self) -> str:
        if not self.stack:
            return self.part
        stop = f":{self.stop}" if self.stop > self.start + 1 else ""
        return f"{self.stack}.{self.start}{stop}" + (f".{self.part}" if self.part else "")

    @classmethod
    def parse(cls, name: str) -> Place:
        """The place that has this name.

        Raises:
            InputError: text that names no place.
        """
        if not isinstance(name, str) or not name:
            raise InputError(
                f"{name!r} is the name of no unit; valid: names such as 'blocks.3', "
                "'blocks.3.attn', 'blocks.4:9' or 'residual'"
            )
        words = name.split(".")
        # The last number: module lists may lie inside others.
        for position in range(len(words) - 1, 0, -1):
            match = _NUMBERS.fullmatch(words[position])
            if match is not None:
                start = int(match["start"])
                stop = start + 1 if match["stop"] is None else int(match["stop"])
                stack, part = words[:position], words[position + 1 :]
                return cls(".".join(stack), start, stop, ".".join(part))
        return cls(part=name)


@dataclass(frozen=True)
class Unit:
    """A part of a network that can stay, go, be replaced or be resized.

    Attributes:
        kind: such as `BLOCKS`; see there.
        place: where it is.
        index: of its first block among all blocks of the network; ``None`` for channels that run
            through many blocks.
        parameters: number of parameters that go with it; ``None`` for channels, whose weights are
            shared with other groups (`tinyfusion.backbones.coupling.Coupling.count`).
        macs: multiply-accumulates of one forward of one sample; ``None`` if they were not counted.
        seconds: measured time of one forward; ``None`` if it was not measured.
        size: members of a group of channels; 1 for all others.
    """

    kind: str
    place: Place
    index: int | None
    parameters: int | None
    macs: int | None = None
    seconds: float | None = None
    size: int = 1

    @property
    def name(self) -> str:
        """Readable name, unique among the units of its kind."""
        return str(self.place)

    @property
    def block_name(self) -> str:
        """Name of its block, or blocks, as a whole."""
        return str(replace(self.place, part=""))

    @property
    def blocks(self) -> range:
        """Indices of its blocks among all of the network; empty for channels of many blocks."""
        if self.index is None:
            return range(0)
        return range(self.index, self.index + self.place.stop - self.place.start)


def kept_and_removed(
    units: Sequence[Unit], kept: Iterable[int], depth: int
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Blocks that stay, and names of the branches that go from blocks that stay.

    A block of which no unit stays is gone; blocks without units stay.

    Args:
        units: blocks, or branches of blocks.
        kept: numbers of those that stay.
        depth: number of blocks of the network.
    """
    stays = [units[number] for number in sorted(kept)]
    within = {unit.index for unit in stays}
    within |= set(range(depth)) - {unit.index for unit in units}
    gone = [unit for number, unit in enumerate(units) if number not in set(kept)]
    removed = tuple(unit.name for unit in gone if unit.kind == BRANCHES and unit.index in within)
    return tuple(sorted(block for block in within if block is not None)), removed


def intervals_of(blocks: Sequence[Unit], borders: Sequence[int] = ()) -> tuple[Unit, ...]:
    """All runs of at least two consecutive blocks, by their first block and then by length.

    Args:
        blocks: all blocks of a network in order.
        borders: block indices that no interval crosses.
    """
    ends = sorted({0, *borders, len(blocks)})
    return tuple(
        _interval(blocks[start:stop])
        for begin, end in pairwise(ends)
        for start in range(begin, end)
        for stop in range(start + 2, end + 1)
    )


def _interval(blocks: Sequence[Unit]) -> Unit:
    first, last = blocks[0], blocks[-1]
    place = Place(first.place.stack, first.place.start, last.place.stop)
    macs = [block.macs for block in blocks if block.macs is not None]
    return Unit(
        INTERVALS,
        place,
        first.index,
        sum(block.parameters or 0 for block in blocks),
        sum(macs) if len(macs) == len(blocks) else None,
    )
