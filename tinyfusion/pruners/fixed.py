"""Blocks given by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tinyfusion.backbones.contract import Backbone
from tinyfusion.decision import check_kept
from tinyfusion.errors import InputError
from tinyfusion.pruners.contract import Choice, PruningContext
from tinyfusion.units import BRANCHES, kept_and_removed


class Indices:
    """Keep exactly these blocks, or branches of blocks.

    Args:
        kept: 0-based block indices, in any order; or names, such as ``blocks.0`` for a block and
            ``blocks.3.attn`` for a branch, in which case the other branches of that block go.
    """

    uses_scheme = False
    uses_keep = False
    unit_scores: ClassVar[tuple[str, ...]] = ()

    def __init__(self, kept: Sequence[int | str]) -> None:
        self.kept = list(kept)

    def plan(self, net: Backbone) -> Choice:
        """The choice itself, which needs no weights.

        Raises:
            InputError: an index out of range, a name that no block or branch has, or one of them
                given twice.
        """
        blocks = {unit.name: number for number, unit in enumerate(net.units())}
        asked = [blocks.get(str(entry), entry) for entry in self.kept]
        whole = [entry for entry in asked if not isinstance(entry, str)]
        names = [entry for entry in asked if isinstance(entry, str)]
        if not names:
            return Choice(check_kept(whole, net.depth, key="pruner.kept"))
        branches = net.units(BRANCHES)
        numbers = {unit.name: number for number, unit in enumerate(branches)}
        unknown = [name for name in names if name not in numbers]
        if unknown:
            raise InputError(
                f"pruner.kept={self.kept}: there is no {unknown[0]!r}; valid: "
                f"0..{net.depth - 1}, or names such as {next(iter(blocks))} and {branches[0].name}"
            )
        kept = [numbers[name] for name in names]
        kept += [n for n, unit in enumerate(branches) if unit.index in whole]
        # Refuses what is out of range or given twice.
        check_kept(whole or [0], net.depth, key="pruner.kept")
        if len(set(kept)) < len(kept):
            raise InputError(f"pruner.kept={self.kept} names a branch twice")
        stay, removed = kept_and_removed(branches, kept, net.depth)
        return Choice(stay, removed=removed)

    def choose(self, context: PruningContext) -> Choice:
        """Check the list against the model.

        Raises:
            InputError: an index out of range or given twice.
        """
        return self.plan(context.net)
