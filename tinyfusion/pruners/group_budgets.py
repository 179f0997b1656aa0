"""How many units of each group stay, in proportion to what their scores say (arXiv 2310.02998).

Shape suffixes: K units that were scored.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tinyfusion.budget import Budget
from tinyfusion.errors import InputError
from tinyfusion.pruners.selectors import Score, Selection, best_of_groups
from tinyfusion.scheme import MAX_CHOICES, BlockGroup, Scheme
from tinyfusion.units import BLOCKS


def group_budgets(
    shares: Sequence[float], sizes: Sequence[int], keep: int, least: Sequence[int] | None = None
) -> list[int]:
    """Hand out a number of units among groups in proportion to shares, by largest remainder.

    What a group can't take, or has to be given beyond its share, is made up by the others, in
    proportion to theirs.

    Args:
        shares: importance of each group, not negative; all zero: by size.
        sizes: units of each group.
        keep: units that stay in all.
        least: how many stay in each group at least; default: one.

    Returns:
        How many units of each group stay; the sum is ``keep``. Of equal remainders, that of the
        earlier group counts as larger.

    Raises:
        InputError: ``keep`` is less than what has to stay, or more than there are.
    """
    from scipy.optimize import brentq  # slow to import

    least = [1] * len(sizes) if least is None else least
    if not sum(least) <= keep <= sum(sizes):
        raise InputError(
            f"keep={keep} can't be handed out among {len(sizes)} groups: at least "
            f"{sum(least)} of their {sum(sizes)} units stay"
        )
    if not any(shares):
        shares = sizes
    # A group without a share comes after all others, but can be filled.
    whole = sum(shares)
    weights = [max(share / whole, 1e-9) for share in shares]

    def quotas(scale: float) -> list[float]:
        return [
            min(max(scale * weight, low), size)
            for weight, low, size in zip(weights, least, sizes, strict=True)
        ]

    most = max(size / weight for size, weight in zip(sizes, weights, strict=True))
    scale = brentq(lambda scale: sum(quotas(scale)) - keep, 0.0, most)
    # Rounded, as the scale is found up to rounding.
    wanted = [round(quota, 6) for quota in quotas(scale)]
    counts = [int(quota) for quota in wanted]
    by_remainder = sorted(range(len(sizes)), key=lambda group: counts[group] - wanted[group])
    for group in by_remainder[: keep - sum(counts)]:
        counts[group] += 1
    return counts


class GroupBudgets:
    """Give each group of units as many as its share of the scores says, and keep its best.

    A group's share is the sum of its units' scores; where some are negative, of what they are
    above the lowest. At least one unit of each group stays, and what is protected.

    Source: ECoFLaP (arXiv 2310.02998) gives layers shares of the weights that stay; that whole
    units are counted, by largest remainder, is ours.

    Args:
        sizes: number of units of each group, in order; one number for groups of that many, of
            which the last may be smaller.

    Raises:
        InputError: a size below 1, or no groups.
    """

    name, uses_scheme = "group_budgets", False

    def __init__(self, sizes: int | Sequence[int] = 4) -> None:
        listed = [sizes] if isinstance(sizes, int) else list(sizes)
        if not listed or any(size < 1 for size in listed):
            raise InputError(
                f"selector.sizes={sizes} must be a positive number of units, or a list of such"
            )
        self.sizes = sizes if isinstance(sizes, int) else listed

    def select(self, score: Score, budget: Budget) -> Selection:
        """See `Selector`; ``order`` lists the removed units, group by group.

        Evidence: ``groups``, how many of how many stay in each; of blocks they are the decision's
        scheme as well, unless one has too many keep-patterns for any.

        Raises:
            InputError: the budget is not a number of units, groups of other numbers of units, or
                more groups than units that stay.
        """
        if not budget.counts:
            raise InputError(
                f"{budget}: selector=group_budgets hands out a number of units; give keep="
            )
        sizes = self._sizes(budget.count)
        starts = [sum(sizes[:group]) for group in range(len(sizes))]
        held = [
            len(budget.protected & set(range(start, start + size)))
            for start, size in zip(starts, sizes, strict=True)
        ]
        least = [max(1, count) for count in held]
        if sum(least) > budget.keep:
            raise InputError(
                f"keep={budget.keep}: selector.sizes={self.sizes} makes {len(sizes)} groups, in "
                f"which {sum(least)} units must stay, one of each group and protected ones; give "
                "fewer groups"
            )
        scores_K = score(range(budget.count))
        shares = [float(part.sum()) for part in _not_negative(scores_K).split(sizes)]
        counts = group_budgets(shares, sizes, budget.keep, least)
        groups = tuple(map(BlockGroup, starts, counts, sizes))
        kept, dropped = best_of_groups(scores_K, groups, budget)
        if not budget.allows(kept):
            raise InputError(
                f"selector.sizes={self.sizes} keeps fewer of some units than must stay; give "
                "budget.minimum for these groups, or other groups"
            )
        of_blocks = budget.units[0].kind == BLOCKS
        listable = all(group.num_choices <= MAX_CHOICES for group in groups)
        return Selection(
            kept,
            scores_K,
            {"order": dropped, "groups": [[group.keep, group.size] for group in groups]},
            Scheme(groups) if of_blocks and listable else None,
        )

    def _sizes(self, count: int) -> list[int]:
        if isinstance(self.sizes, int):
            if self.sizes > count:
                raise InputError(f"selector.sizes={self.sizes}: there are only {count} units")
            whole, rest = divmod(count, self.sizes)
            return [self.sizes] * whole + [rest] * (rest > 0)
        if sum(self.sizes) != count:
            raise InputError(
                f"selector.sizes={self.sizes} adds up to {sum(self.sizes)} units but there are "
                f"{count}"
            )
        return self.sizes


def _not_negative(scores_K: Tensor) -> Tensor:
    """Scores whose lowest is not below zero; infinite ones count as the ends of the others."""
    finite = scores_K[scores_K.isfinite()]
    if not len(finite):
        return scores_K.new_ones(scores_K.shape)
    low, high = finite.min(), finite.max()
    return scores_K.clamp(low, high) - low.clamp(max=0)
