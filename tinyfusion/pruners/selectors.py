"""From scores of units to the units that stay; every scoring pruner works with each of these.

Units are numbered within one kind (`Backbone.units`): blocks, unless stated otherwise.

Shape suffixes: K units that were scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tinyfusion.budget import Budget
from tinyfusion.errors import InputError
from tinyfusion.pruners.knapsack import cheapest
from tinyfusion.scheme import BlockGroup, Scheme, check_keep

Score = Callable[[Sequence[int]], Tensor]
"""``score(kept) -> scores_K``: importance of each unit of ``kept`` (ascending) in the model that
runs only these units, float64; higher is more important."""


class Selection(NamedTuple):
    """What a selector decided.

    Attributes:
        kept: units that stay, ascending.
        scores: scores of all units in the whole model, shape (K,).
        evidence: how it came about, as plain data.
        scheme: the groups of blocks within which it was decided, if there were any.
    """

    kept: tuple[int, ...]
    scores: Tensor
    evidence: dict[str, Any]
    scheme: Scheme | None = None


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
    """Score all units once and keep the most important ones that fit into the budget."""

    name, uses_scheme = "top_k", False

    def select(self, score: Score, budget: Budget) -> Selection:
        """See `Selector`; ``order`` lists the removed units, the least important first."""
        scores_K = score(range(budget.count))
        kept = budget.fill(least_important(scores_K)[::-1])
        return Selection(kept, scores_K, {"order": _dropped(scores_K, kept)})


class Greedy:
    """Drop the least important unit, score the rest in the model without it, and so on.

    Two copies of one block that can stand in for each other both look needless in the whole
    model; after the first has gone, the second does not.
    """

    name, uses_scheme = "greedy", False

    def select(self, score: Score, budget: Budget) -> Selection:
        """See `Selector`; ``order`` lists the units as they went, ``order_scores`` at what.

        Where units cost differently, those that still fit at the end come back, the last that went
        first (``returned``).
        """
        kept = list(range(budget.count))
        order: list[int] = []
        order_scores: list[float] = []
        whole_K = None
        while budget.cost(kept) > budget.limit:
            scores_K = score(kept)
            whole_K = scores_K if whole_K is None else whole_K
            place = next(
                place for place in least_important(scores_K) if budget.can_go(kept[place], kept)
            )
            order.append(kept.pop(place))
            order_scores.append(float(scores_K[place]))
        assert whole_K is not None, "all units together cost more than the limit"
        returned = [unit for unit in budget.fill([*kept, *order[::-1]]) if unit not in kept]
        evidence: dict[str, Any] = {"order": order, "order_scores": order_scores}
        evidence |= {"returned": returned} if returned else {}
        return Selection(tuple(sorted([*kept, *returned])), whole_K, evidence)


class Grouped:
    """Keep the N most important of each group of M of the scheme."""

    name, uses_scheme, needs_scheme = "grouped", True, True

    def select(self, score: Score, budget: Budget) -> Selection:
        """See `Selector`; ``order`` lists the removed units, group by group.

        Raises:
            InputError: there is no scheme, it keeps another number of units than ``keep``, more
                units of a group are protected than stay in it, or more of some must stay.
        """
        if not budget.counts:
            raise InputError(f"{budget}: selector=grouped keeps a number of blocks; give scheme=")
        scheme = check_keep(budget.scheme, budget.keep)
        for group in scheme.groups:
            held = len(budget.protected & set(group.blocks))
            if held > group.keep:
                raise InputError(
                    f"scheme={scheme} keeps {group.keep} of {group.blocks[0]}..{group.blocks[-1]}, "
                    f"but {held} of them are protected"
                )
        scores_K = score(range(budget.count))
        kept, dropped = best_of_groups(scores_K, scheme.groups, budget)
        if not budget.allows(kept):
            raise InputError(
                f"scheme={scheme} keeps fewer of some units than must stay; leave one of them out"
            )
        return Selection(kept, scores_K, {"order": dropped}, scheme)


class Knapsack:
    """Drop the set of units whose scores have the least sum, by integer programming.

    No unit goes without which the budget would still be met. Where units are counted, exactly
    ``keep`` stay, those of `TopK`.

    Source: Laptop-Diff (arXiv 2404.11098), for which scores add up to the change of the output.
    """

    name, uses_scheme = "knapsack", False

    def select(self, score: Score, budget: Budget) -> Selection:
        """See `Selector`.

        Evidence: the cost ``to_remove`` and that ``removed``, ``summed_score`` of the removed
        units, and whether the sum is the least of all (``exact``) or, with very many costs, only
        close to it.

        Raises:
            InputError: the units that are not protected are too few.
        """
        sizes, least = _to_remove(budget)
        free = budget.free
        if sum(sizes[unit] for unit in free) < least:
            raise InputError(
                f"{budget}: {least:,} are to go, but the units that are not protected have "
                f"{sum(sizes[unit] for unit in free):,}; raise the budget"
            )
        scores_K = score(range(budget.count))
        at_most = [
            ([free.index(unit) for unit in minimum.units if unit in free], spare)
            for minimum in budget.minimums
            if (spare := len(minimum.units) - minimum.count) >= 0
        ]
        found = cheapest(
            [float(scores_K[unit]) for unit in free],
            [sizes[unit] for unit in free],
            least,
            at_most=at_most,
        )
        dropped = [free[item] for item in found.items]
        left = [unit for unit in range(budget.count) if unit not in dropped]
        if not budget.allows(left):  # by less than the solver's tolerance
            best = least_important(scores_K)[::-1]
            left = list(budget.fill(sorted(best, key=lambda unit: unit in dropped)))
            dropped = [unit for unit in range(budget.count) if unit not in left]
        evidence = {
            "order": sorted(dropped, key=lambda unit: (float(scores_K[unit]), unit)),
            "to_remove": least,
            "removed": sum(sizes[unit] for unit in dropped),
            "summed_score": float(scores_K[dropped].sum()),
            "exact": found.exact,
        }
        return Selection(tuple(left), scores_K, evidence)


def least_important(scores_K: Tensor) -> list[int]:
    """All places, that of the lowest score first.

    Of equal scores, that of the earlier unit counts as lower.
    """
    return scores_K.argsort(stable=True).tolist()


def best_of_groups(
    scores_K: Tensor, groups: Sequence[BlockGroup], budget: Budget
) -> tuple[tuple[int, ...], list[int]]:
    """The most important units of each group, protected ones first.

    Args:
        scores_K: scores of all units.
        groups: consecutive groups of units, and how many of each stay.
        budget: what must stay.

    Returns:
        The units that stay, ascending, and those that go, group by group, the least important
        first.
    """
    order = least_important(scores_K)
    kept: list[int] = []
    for group in groups:
        first = sorted(
            (unit for unit in order[::-1] if unit in group.blocks),
            key=lambda unit: unit not in budget.protected,
        )
        kept += first[: group.keep]
    dropped = [
        unit for group in groups for unit in order if unit in group.blocks and unit not in kept
    ]
    return tuple(sorted(kept)), dropped


def _dropped(scores_K: Tensor, kept: Sequence[int]) -> list[int]:
    """Units that are not kept, the least important first."""
    return [unit for unit in least_important(scores_K) if unit not in kept]


def _to_remove(budget: Budget) -> tuple[Sequence[int], int]:
    """Whole-numbered sizes of the units, and what has to go of them."""
    if budget.counts:
        return [1] * budget.count, budget.drop
    if all(float(cost).is_integer() for cost in budget.costs):
        sizes = [int(cost) for cost in budget.costs]
        return sizes, math.ceil(sum(sizes) - budget.limit)
    # Rounded so that what is reached in whole numbers is reached.
    unit = sum(budget.costs) / 1e9
    sizes = [math.floor(cost / unit) for cost in budget.costs]
    return sizes, math.ceil((sum(budget.costs) - budget.limit) / unit)
