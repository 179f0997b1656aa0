"""Choices by position alone: no data, no scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from tinyfusion.errors import InputError
from tinyfusion.pruners.contract import Choice, PruningContext, method_of
from tinyfusion.scheme import evenly_spaced


class Pattern(ABC):
    """Base class of the pruners for which only the number of blocks matters."""

    uses_scheme = False
    unit_scores: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def pattern(self, depth: int, keep: int) -> tuple[int, ...]:
        """The blocks that stay, ascending.

        Args:
            depth: number of blocks.
            keep: how many of them stay, from 1 to ``depth - 1``.
        """

    def choose(self, context: PruningContext) -> Choice:
        """The pattern of as many blocks as the budget allows.

        Raises:
            InputError: no number of blocks gives a pattern that it allows.
        """
        budget = context.budget
        assert budget is not None
        sizes = (budget.keep,) if budget.counts else range(budget.count - 1, 0, -1)
        for keep in sizes:
            kept = self.pattern(budget.count, keep)
            if budget.allows(kept):
                return context.choice(kept)
        held = [f"budget.{key}" for key in budget.constraints] or ["the budget"]
        raise InputError(
            f"{budget}: the fixed pattern of pruner={method_of(self)} does not meet "
            f"{' and '.join(held)}; leave it out, or choose another pruner="
        )


class Oracle(Pattern):
    """The pattern of BK-SDM (arXiv 2305.15798) on a stack of equal blocks.

    Blocks are paired up; of each pair the first stays in the first half of the model and the last
    in the second half: of 28 blocks 0, 2, ..., 12, 15, 17, ..., 27. For other budgets see
    `mirrored`.
    """

    def pattern(self, depth: int, keep: int) -> tuple[int, ...]:
        """See `mirrored`."""
        return mirrored(depth, keep)


class Uniform(Pattern):
    """Evenly spaced blocks from the first on: of 28 blocks 0, 2, ..., 26 for ``keep=14``."""

    def pattern(self, depth: int, keep: int) -> tuple[int, ...]:
        """Blocks ``floor(i * depth / keep)``."""
        return evenly_spaced(depth, keep)


class First(Pattern):
    """The first ``keep`` blocks, then the output layer: a prefix of the model.

    The student of Width & Depth Pruning (AAAI 2022) without its joint training of all prefixes.
    """

    def pattern(self, depth: int, keep: int) -> tuple[int, ...]:
        """All but the end."""
        return tuple(range(keep))


class Last(Pattern):
    """The last ``keep`` blocks, right after the embedding."""

    def pattern(self, depth: int, keep: int) -> tuple[int, ...]:
        """All but the start."""
        return tuple(range(depth - keep, depth))


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
