"""Choices that look at no data: a list given by hand, and a random draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tinyfusion.decision import check_kept
from tinyfusion.errors import InputError
from tinyfusion.pruners.contract import Choice, PruningContext
from tinyfusion.seeding import generator


class Indices:
    """Keep exactly these blocks.

    Args:
        kept: 0-based block indices, in any order.
    """

    uses_scheme = False
    uses_keep = False

    def __init__(self, kept: Sequence[int]) -> None:
        self.kept = list(kept)

    def choose(self, context: PruningContext) -> Choice:
        """Check the list against the model.

        Raises:
            InputError: an index out of range or doubled.
        """
        return Choice(check_kept(self.kept, context.net.depth, key="pruner.kept"))


class Random:
    """A set drawn uniformly among all sets of ``keep`` blocks.

    Args:
        draw_seed: seed of the draw; ``None`` takes the run's seed.
    """

    uses_scheme = False

    def __init__(self, draw_seed: int | None = None) -> None:
        self.draw_seed = draw_seed

    def choose(self, context: PruningContext) -> Choice:
        """Draw the set."""
        depth, keep = context.net.depth, context.keep
        if not 0 < keep < depth:
            raise InputError(f"keep={keep} must be between 1 and {depth - 1}")
        seed = context.seed if self.draw_seed is None else self.draw_seed
        order = torch.randperm(depth, generator=generator(seed, "random_pruner"))
        return Choice(tuple(sorted(order[:keep].tolist())), scores={"draw_seed": seed})
