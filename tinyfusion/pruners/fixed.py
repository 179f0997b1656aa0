"""Blocks given by hand."""

from __future__ import annotations

from collections.abc import Sequence

from tinyfusion.backbones.contract import Backbone
from tinyfusion.decision import check_kept
from tinyfusion.pruners.contract import Choice, PruningContext


class Indices:
    """Keep exactly these blocks.

    Args:
        kept: 0-based block indices, in any order.
    """

    uses_scheme = False
    uses_keep = False

    def __init__(self, kept: Sequence[int]) -> None:
        self.kept = list(kept)

    def plan(self, net: Backbone) -> Choice:
        """The choice itself, which needs no weights.

        Raises:
            InputError: an index out of range or given twice.
        """
        return Choice(check_kept(self.kept, net.depth, key="pruner.kept"))

    def choose(self, context: PruningContext) -> Choice:
        """Check the list against the model.

        Raises:
            InputError: an index out of range or given twice.
        """
        return self.plan(context.net)
