"""The least costly set of items of at least a given size, by integer programming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_NODES = 2_000
"""Nodes of the branch-and-bound tree beyond which the best set found so far is taken."""

COST_SCALE = 1e6
"""What the largest cost is scaled to. The solver may stop 1e-6 short of the optimum, so that sums
count as equal that differ by 1e-12 of the largest cost, whatever its unit."""

BITS = 20
"""Places that one objective tells apart by powers of two: few enough for exact sums."""


class Items(NamedTuple):
    """A set of items, ascending, and whether no allowed set costs less."""

    items: tuple[int, ...]
    exact: bool


def cheapest(
    costs: Sequence[float],
    sizes: Sequence[int],
    least: int,
    most_nodes: int = MOST_NODES,
    at_most: Sequence[tuple[Sequence[int], int]] = (),
) -> Items:
    """The set of least summed cost among those that reach a size and need all their items for it.

    A set that would still reach ``least`` without one of its items is not allowed; where costs
    are not negative, this rules out nothing that could cost less. Of sets of equal cost, one of
    earlier items is taken: with items ordered by falling size, the set whose last item comes
    first; then the smallest; then the one whose last but one item comes first, and so on.

    Args:
        costs: cost of every item; may be infinite, not NaN.
        sizes: size of every item, at least 0.
        least: the size to reach, at least 1 and at most what all items have together.
        most_nodes: where the search stops, in nodes of its tree; what it has found by then is
            not ``exact``.
        at_most: groups of items, and how many of each may be taken.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import

    assert 1 <= least <= sum(sizes), (least, sizes)
    # Items without size are in no allowed set.
    order = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: (-sizes[i], i))
    unit = math.gcd(*(sizes[item] for item in order))
    sizes_N = np.array([sizes[item] // unit for item in order], dtype=float)
    smallest_V = np.unique(sizes_N)
    items, kinds = len(order), len(smallest_V)
    # Columns: item n is taken; no item below smallest_V[v] is taken, of which one v holds; the
    # last place taken. A set needs all its items if it needs one as small as its smallest.
    zero_V = np.zeros(kinds)
    item_NN, places_N = np.eye(items), np.arange(items)
    larger_NV = (smallest_V <= sizes_N[:, None]).astype(float)
    rows = [
        LinearConstraint([*sizes_N, *zero_V, 0], lb=-(-least // unit)),
        LinearConstraint([*sizes_N, *-smallest_V, 0], ub=-(-least // unit) - 1),
        LinearConstraint([*np.zeros(items), *np.ones(kinds), 0], lb=1, ub=1),
        LinearConstraint(np.c_[item_NN, -larger_NV, np.zeros(items)], ub=0),
        LinearConstraint(np.c_[item_NN * places_N, 0 * larger_NV, -np.ones(items)], ub=0),
    ]
    for members, most in at_most:
        taken = np.isin(order, list(members)).astype(float)
        rows.append(LinearConstraint([*taken, *zero_V, 0], ub=most))
    objectives = [
        [*_scaled([costs[item] for item in order]), *zero_V, 0],
        [*np.zeros(items), *zero_V, 1],
        [*sizes_N, *zero_V, 0],
    ]
    for first in reversed(range(0, items, BITS)):
        here_N = (places_N >= first) & (places_N < first + BITS)
        objectives.append([*(here_N * 2.0 ** (places_N - first)), *zero_V, 0])
    # The largest items that reach it need each other: a set in case the search finds none in time.
    taken_N = np.cumsum(sizes_N) - sizes_N < -(-least // unit)
    exact = True
    for place, objective in enumerate(objectives):
        found = milp(
            objective,
            integrality=1,
            bounds=Bounds(0, [*np.ones(items + kinds), items]),
            constraints=rows,
            options={"mip_rel_gap": 0.0, "node_limit": most_nodes},
        )
        exact = exact and (place > 0 or found.status == 0)
        if found.x is not None:
            best = np.rint(found.x)
            taken_N = best[:items] > 0
            # Later objectives choose among those that are best by this one.
            rows.append(LinearConstraint(objective, ub=float(np.dot(objective, best))))
    return Items(tuple(sorted(order[place] for place in np.flatnonzero(taken_N))), exact)


def _scaled(costs: Sequence[float]) -> NDArray[np.float64]:
    """Costs of at most `COST_SCALE`; an infinite one stands above the sum of all finite ones."""
    costs_N = np.array(costs)
    finite_N = np.isfinite(costs_N)
    beyond = np.abs(costs_N[finite_N]).sum() or 1.0
    costs_N = np.where(finite_N, costs_N, np.sign(costs_N) * 2 * beyond)
    return costs_N * (COST_SCALE / (np.abs(costs_N).max() or 1.0))
