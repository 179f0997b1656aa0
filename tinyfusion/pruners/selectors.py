"""From scores of units to the units that stay; every scoring pruner works with each of these.

Units are numbered within one kind (`Backbone.units`): blocks, unless stated otherwise.

Shape suffixes: K units that were scored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tinyfusion.errors import InputError
from tinyfusion.pruners.knapsack import cheapest
from tinyfusion.scheme import Scheme, check_keep

Score = Callable[[Sequence[int]], Tensor]
"""``score(kept) -> scores_K``: importance of each unit of ``kept`` (ascending) in the model that
runs only these units, float64; higher is more important."""


@dataclass(frozen=True)
class Budget:
    """How much is to stay, and what must.

    Attributes:
        keep: number of units that stay, from 1 to one less than there are.
        parameters: number of parameters of every unit.
        protected: units that must stay.
        scheme: the groups, for a selector that needs them.
    """

    keep: int
    parameters: tuple[int, ...]
    protected: frozenset[int] = frozenset()
    scheme: Scheme | None = None

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.parameters)

    @property
    def drop(self) -> int:
        """Number of units to remove, if they are counted."""
        return self.count - self.keep

    def check(self) -> None:
        """Called before scoring, which may take long.

        Raises:
            InputError: more units are protected than may stay.
        """
        _check_protected(self.drop, self.count - len(self.protected))


class Selection(NamedTuple):
    """What a selector decided.

    Attributes:
        kept: units that stay, ascending.
        scores: scores of all units in the whole model, shape (K,).
        evidence: how it came about, as plain data.
    """

    kept: tuple[int, ...]
    scores: Tensor
    evidence: dict[str, Any]


class Selector(Protocol):
    """A way from scores to a selection; what ``conf/selector/*.yaml`` builds.

    Attributes:
        name: what evidence calls it.
        uses_scheme: whether it decides within the groups of a scheme.
    """

    name: str
    uses_scheme: bool

    def select(self, score: Score, budget: Budget) -> Selection:
        """Choose the units that stay.

        Args:
            score: scores units; calls may be costly.
            budget: what may go.

        Raises:
            InputError: the budget can't be met; raised before anything is scored.
        """


class TopK:
    """Score all units once and drop the least important ones."""

    name, uses_scheme = "top_k", False

    def select(self, score: Score, budget: Budget) -> Selection:
        """See `Selector`; ``order`` lists the removed units, the least important first."""
        budget.check()
        scores_K = score(range(budget.count))
        dropped = least_important(scores_K, budget.drop, budget.protected)
        return Selection(_others(budget, dropped), scores_K, {"order": list(dropped)})


class Greedy:
    """Drop the least important unit, score the rest in the model without it, and so on.

    Two copies of one block that can stand in for each other both look needless in the whole
    model; after the first has gone, the second does not.
    """

    name, uses_scheme = "greedy", False

    def select(self, score: Score, budget: Budget) -> Selection:
        """See `Selector`; ``order`` lists the units as they went, ``order_scores`` at what."""
        budget.check()
        kept = list(range(budget.count))
        order: list[int] = []
        order_scores: list[float] = []
        whole_K = None
        while len(kept) > budget.keep:
            scores_K = score(kept)
            whole_K = scores_K if whole_K is None else whole_K
            places = [place for place, block in enumerate(kept) if block in budget.protected]
            (place,) = least_important(scores_K, 1, places)
            order.append(kept.pop(place))
            order_scores.append(float(scores_K[place]))
        assert whole_K is not None, "keep is less than the number of units"
        return Selection(tuple(kept), whole_K, {"order": order, "order_scores": order_scores})


class Grouped:
    """Keep the N most important of each group of M of the scheme."""

    name, uses_scheme = "grouped", True

    def select(self, score: Score, budget: Budget) -> Selection:
        """See `Selector`; ``order`` lists the removed units, group by group.

        Raises:
            InputError: there is no scheme, it keeps another number of blocks than ``keep``, or
                more blocks of a group are protected than stay in it.
        """
        scheme = check_keep(budget.scheme, budget.keep)
        for group in scheme.groups:
            free = len(set(group.blocks) - budget.protected)
            _check_protected(
                group.size - group.keep, free, f" of {group.blocks[0]}..{group.blocks[-1]}"
            )
        scores_K = score(range(budget.count))
        dropped: list[int] = []
        for group in scheme.groups:
            outside = set(range(budget.count)) - set(group.blocks)
            dropped += least_important(
                scores_K, group.size - group.keep, outside | budget.protected
            )
        return Selection(_others(budget, dropped), scores_K, {"order": dropped})


class Knapsack:
    """Drop the set of blocks whose scores have the least sum, by integer programming.

    At least the share ``(depth - keep) / depth`` of the blocks' parameters goes, and no block
    without which that much would still go. Blocks of one size: exactly ``keep`` of them stay,
    those of `TopK`. Blocks of several sizes: their number may differ from ``keep``.

    Source: Laptop-Diff (arXiv 2404.11098), for which scores add up to the change of the output.
    """

    name, uses_scheme = "knapsack", False

    def select(self, score: Score, budget: Budget) -> Selection:
        """See `Selector`.

        Evidence: ``parameters_to_remove``, ``parameters_removed``, ``summed_score`` of the removed
        blocks, and whether the sum is the least of all (``exact``) or, with very many sizes, only
        close to it.

        Raises:
            InputError: the blocks that are not protected have too few parameters.
        """
        # Blocks without parameters are counted instead.
        sizes = budget.parameters if any(budget.parameters) else (1,) * budget.count
        least = -(-budget.drop * sum(sizes) // budget.count)
        free = [block for block in range(budget.count) if block not in budget.protected]
        if sum(sizes[block] for block in free) < least:
            raise InputError(
                f"keep={budget.keep}: {least:,} parameters are to go but the blocks that are not "
                f"protected have {sum(sizes[block] for block in free):,}; raise keep="
            )
        scores_K = score(range(budget.count))
        found = cheapest(
            [float(scores_K[block]) for block in free], [sizes[block] for block in free], least
        )
        dropped = [free[item] for item in found.items]
        evidence = {
            "order": sorted(dropped, key=lambda block: (float(scores_K[block]), block)),
            "parameters_to_remove": least,
            "parameters_removed": sum(sizes[block] for block in dropped),
            "summed_score": float(scores_K[dropped].sum()),
            "exact": found.exact,
        }
        return Selection(_others(budget, dropped), scores_K, evidence)


def least_important(scores_K: Tensor, drop: int, protected: Collection[int]) -> tuple[int, ...]:
    """The ``drop`` places of lowest score, protected ones left out; first the lowest.

    Of equal scores, that of the earlier block counts as lower.

    Raises:
        InputError: too many are protected.
    """
    order = [i for i in scores_K.argsort(stable=True).tolist() if i not in protected]
    _check_protected(drop, len(order))
    return tuple(order[:drop])


def _check_protected(drop: int, free: int, where: str = "") -> None:
    if drop > free:
        blocks = f"{drop} blocks{where} are" if drop > 1 else f"1 block{where} is"
        raise InputError(f"{blocks} to go but only {free} are not protected; raise keep=")


def _others(budget: Budget, dropped: Iterable[int]) -> tuple[int, ...]:
    gone = set(dropped)
    return tuple(block for block in range(budget.count) if block not in gone)
