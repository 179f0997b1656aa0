"""Choices by position alone: no data, no scores."""

from __future__ import annotations

from collections.abc import Callable

from tinyfusion.errors import InputError
from tinyfusion.pruners.contract import Choice, PruningContext
from tinyfusion.scheme import evenly_spaced


class Oracle:
    """The pattern of BK-SDM (arXiv 2305.15798) on a stack of equal blocks.

    Blocks are paired up; of each pair the first stays in the first half of the model and the last
    in the second half: of 28 blocks 0, 2, ..., 12, 15, 17, ..., 27. For other budgets see
    `mirrored`.
    """

    uses_scheme = False

    def choose(self, context: PruningContext) -> Choice:
        """Lay the pattern over the model."""
        return _most(context, lambda keep: mirrored(context.net.depth, keep))


class Uniform:
    """Evenly spaced blocks from the first on: of 28 blocks 0, 2, ..., 26 for ``keep=14``."""

    uses_scheme = False

    def choose(self, context: PruningContext) -> Choice:
        """Keep blocks ``floor(i * depth / keep)``."""
        return _most(context, lambda keep: evenly_spaced(context.net.depth, keep))


class First:
    """The first ``keep`` blocks, then the output layer: a prefix of the model.

    The student of Width & Depth Pruning (AAAI 2022) without its joint training of all prefixes.
    """

    uses_scheme = False

    def choose(self, context: PruningContext) -> Choice:
        """Cut off the end."""
        return _most(context, lambda keep: tuple(range(keep)))


class Last:
    """The last ``keep`` blocks, right after the embedding."""

    uses_scheme = False

    def choose(self, context: PruningContext) -> Choice:
        """Cut off the start."""
        depth = context.net.depth
        return _most(context, lambda keep: tuple(range(depth - keep, depth)))


def _most(context: PruningContext, pattern: Callable[[int], tuple[int, ...]]) -> Choice:
    """The pattern of as many blocks as the budget allows.

    Raises:
        InputError: no number of blocks gives a pattern that it allows.
    """
    budget = context.budget
    assert budget is not None
    for keep in range(budget.keep if budget.counts else budget.count - 1, 0, -1):
        if budget.allows(pattern(keep)):
            return context.choice(pattern(keep))
        if budget.counts:
            break
    raise InputError(f"{budget}: a fixed pattern can't keep what must stay; choose another pruner=")


def mirrored(depth: int, keep: int) -> tuple[int, ...]:
    """BK-SDM's pattern for any depth and budget.

    The first half of the blocks is kept by `evenly_spaced` and the second half by its mirror
    image, so that blocks 0 and ``depth - 1`` stay and, where ``keep`` is even or ``depth`` is
    odd, the pattern is its own mirror image. An odd number to keep takes the middle block if there
    is one, else one more block of the first half. A single block is block 0.
    """
    half = depth // 2
    front = back = keep // 2
    middle: tuple[int, ...] = ()
    if keep % 2 and depth % 2 and keep > 1:
        middle = (half,)
    else:
        front += keep % 2
    return (
        *evenly_spaced(half, front),
        *middle,
        *sorted(depth - 1 - place for place in evenly_spaced(half, back)),
    )
