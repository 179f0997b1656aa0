"""The least costly set of items of at least a given size.

Shape suffixes: N states, that is sums of sizes that some set of the items seen so far has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOST_STATES = 1 << 16
"""Beyond this many sums of sizes, only the least costly of sums that nearly agree are followed."""


class Items(NamedTuple):
    """A set of items, ascending, and whether no allowed set costs less."""

    items: tuple[int, ...]
    exact: bool


def cheapest(
    costs: Sequence[float], sizes: Sequence[int], least: int, most_states: int = MOST_STATES
) -> Items:
    """The set of least summed cost among those that reach a size and need all their items for it.

    A set that would still reach ``least`` without one of its items is not allowed; where costs
    are not negative, this rules out nothing that could cost less. Of sets of equal cost, one of
    earlier items is taken.

    Dynamic programming over the distinct sums of sizes: exact as long as there are at most
    ``most_states`` of them, which holds for any number of items of few sizes and for 16 items of
    any sizes. Beyond, sums are rounded to ``least / most_states`` to tell them apart, but never
    to hold them against ``least``.

    Args:
        costs: cost of every item; may be infinite, not NaN.
        sizes: size of every item, at least 0.
        least: the size to reach, at least 1 and at most what all items have together.
        most_states: most sums to follow.
    """
    assert 1 <= least <= sum(sizes), (least, sizes)
    # From the largest item to the smallest, a set is allowed if its last item takes it to
    # ``least``: all states followed are smaller than that.
    order = sorted(range(len(sizes)), key=lambda item: (-sizes[item], item))
    sums_N = torch.zeros(1, dtype=torch.int64)
    costs_N = torch.zeros(1, dtype=torch.float64)
    steps: list[tuple[Tensor, Tensor]] = []
    best: tuple[float, int, int] | None = None
    exact, rest = True, sum(sizes)
    for step, item in enumerate(order):
        rest -= sizes[item]
        with_N = sums_N + sizes[item]
        ends = (with_N >= least).nonzero()[:, 0]
        if len(ends):
            state = int(ends[costs_N[ends].argmin()])
            cost = float(costs_N[state]) + costs[item]
            if best is None or cost < best[0]:
                best = (cost, step, state)
        more = (with_N < least).nonzero()[:, 0]
        sums = torch.cat([sums_N, with_N[more]])
        spent = torch.cat([costs_N, costs_N[more] + costs[item]])
        parents = torch.cat([torch.arange(len(sums_N)), more])
        kept = _cheapest_of_each(sums, spent)
        # States from which the rest of the items can't reach it.
        kept = kept[sums[kept] + rest >= least]
        if len(kept) > most_states:
            exact = False
            kept = kept[_cheapest_of_each(sums[kept] * most_states // least, spent[kept])]
        steps.append((parents[kept].int(), kept >= len(sums_N)))
        sums_N, costs_N = sums[kept], spent[kept]
    assert best is not None, "all items together reach it"
    _, step, state = best
    found = [order[step]]
    while step:
        step -= 1
        parents_N, taken_N = steps[step]
        if taken_N[state]:
            found.append(order[step])
        state = int(parents_N[state])
    return Items(tuple(sorted(found)), exact)


def _cheapest_of_each(keys: Tensor, costs: Tensor) -> Tensor:
    """Places of the least cost of every key, by ascending key; of equal costs the first."""
    order = costs.argsort(stable=True)
    order = order[keys[order].argsort(stable=True)]
    ordered = keys[order]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]
