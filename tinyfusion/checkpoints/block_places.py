"""Where the blocks of a pruned model were in the full one, by the names of their modules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.public_files import DIFFUSERS_BLOCKS
from tinyfusion.errors import InputError


class BlockPlace(NamedTuple):
    """A module inside a block of the full model.

    Attributes:
        stack: which of the model's stacks it is in.
        block: number of the block in that stack, as in the module's name.
        before: the name up to that number.
        after: the name behind it.
    """

    stack: int
    block: int
    before: str
    after: str


class BlockPlaces:
    """Renames modules of a full model as in a model that was pruned from it.

    Args:
        net: the pruned model; its ``kept_from`` is known.

    Raises:
        InputError: the model has several stacks, and no record of where those of the full model
            began.
    """

    def __init__(self, net: Backbone) -> None:
        assert net.kept_from is not None
        names = net.stack_names
        if len(net.source_borders) != len(names) - 1:
            raise InputError(
                f"the {type(net).__name__} has the stacks {', '.join(names)}, but its record does "
                "not say where those of the model it was pruned from began (source_borders); "
                "prune that model again"
            )
        self._kept_from = net.kept_from
        self._starts = (0, *net.source_borders)
        ends = (0, *net.borders, net.depth)
        self.sizes = {name: ends[i + 1] - ends[i] for i, name in enumerate(names)}
        self._own_starts = ends[:-1]
        # In diffusers a model's only stack has another name.
        self._stacks = {name: i for i, name in enumerate(names)} | {DIFFUSERS_BLOCKS: 0}
        lists = "|".join(map(re.escape, self._stacks))
        self._pattern = re.compile(
            rf"(?P<before>(?:.*?\.)?(?P<list>{lists}))\.(?P<block>\d+)(?P<after>\..+|$)"
        )

    def find(self, name: str) -> BlockPlace | None:
        """Where a module of the full model is; ``None`` if it is in no block."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        stack = self._stacks[match["list"]]
        return BlockPlace(stack, int(match["block"]), match["before"], match["after"])

    def index(self, place: BlockPlace) -> int:
        """Index of its block among all blocks of the full model."""
        return self._starts[place.stack] + place.block

    def size(self, place: BlockPlace, depth: int | None) -> int | None:
        """Blocks of its stack in the full model of ``depth`` blocks, as far as known."""
        ends = (*self._starts[1:], depth)
        end = ends[place.stack]
        return None if end is None else end - self._starts[place.stack]

    def renamed(self, name: str) -> str | None:
        """The module's name in the pruned model; ``None`` if its block was removed."""
        place = self.find(name)
        if place is None:
            return name
        size = self.size(place, None)
        index = self.index(place)
        if index not in self._kept_from or (size is not None and place.block >= size):
            return None
        block = self._kept_from.index(index) - self._own_starts[place.stack]
        return f"{place.before}.{block}{place.after}"

    def are_own(self, places: Iterable[BlockPlace]) -> bool:
        """Whether these are all blocks of the pruned model, were they numbered as in it."""
        if self._kept_from == tuple(range(len(self._kept_from))):
            return False
        own = {(i, n) for i, size in enumerate(self.sizes.values()) for n in range(size)}
        return {(place.stack, place.block) for place in places} == own
