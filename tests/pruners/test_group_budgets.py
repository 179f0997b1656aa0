"""Numbers of units of groups, from their shares of the scores."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.budget import Budget, Minimum
from tinyfusion.errors import InputError
from tinyfusion.pruners.flux_lite import FluxLite
from tinyfusion.pruners.group_budgets import GroupBudgets, group_budgets
from tinyfusion.units import BLOCKS, BRANCHES, Place, Unit


@pytest.mark.parametrize(
    ("shares", "sizes", "keep", "wanted"),
    [
        ([5, 3, 1], [8, 8, 8], 9, [5, 3, 1]),
        ([45, 35, 20], [9, 9, 9], 7, [3, 3, 1]),  # 3.15, 2.45, 1.4: the largest remainder gets it
        ([1, 1, 1], [4, 4, 4], 7, [3, 2, 2]),  # of equal ones the first
        ([100, 1, 1], [8, 8, 8], 8, [6, 1, 1]),  # one of each at least
        ([10, 3, 1], [4, 8, 8], 14, [4, 8, 2]),  # four at most, the rest 3:1
        ([0, 0, 0], [6, 3, 3], 8, [4, 2, 2]),  # by size
        ([1, 0, 0], [4, 4, 4], 8, [4, 2, 2]),
        ([1, 2, 3], [4, 4, 4], 12, [4, 4, 4]),
        ([1, 2, 3], [4, 4, 4], 3, [1, 1, 1]),
    ],
)
def test_largest_remainder_within_bounds(shares, sizes, keep, wanted) -> None:
    assert group_budgets(shares, sizes, keep) == wanted
    assert group_budgets([1e-9 * share for share in shares], sizes, keep) == wanted


def test_budgets_add_up_exactly_and_keep_to_quotas() -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(200):
        count = int(torch.randint(1, 9, (), generator=draws))
        sizes = torch.randint(1, 9, (count,), generator=draws).tolist()
        shares = torch.rand(count, generator=draws).square().tolist()
        keep = int(torch.randint(count, sum(sizes) + 1, (), generator=draws))
        counts = group_budgets(shares, sizes, keep)
        assert sum(counts) == keep
        assert all(1 <= n <= size for n, size in zip(counts, sizes, strict=True))
        quotas = [keep * share / sum(shares) for share in shares]
        if all(1 <= q <= size for q, size in zip(quotas, sizes, strict=True)):
            assert all(abs(n - q) < 1 for n, q in zip(counts, quotas, strict=True))


@pytest.mark.parametrize("keep", [2, 13])
def test_numbers_that_no_groups_can_have_are_refused(keep: int) -> None:
    with pytest.raises(InputError, match=f"keep={keep} can't be handed out among 3 groups"):
        group_budgets([1, 1, 1], [4, 4, 4], keep)


def budget(keep: int, count: int = 6, kind: str = BLOCKS, **further) -> Budget:
    places = [Place("blocks", i, i + 1, "mlp" if kind == BRANCHES else "") for i in range(count)]
    return Budget.of([Unit(kind, p, i, 1) for i, p in enumerate(places)], keep, **further)


def fixed(*scores: float):
    return lambda kept: torch.tensor([scores[i] for i in kept], dtype=torch.float64)


def test_the_best_of_each_group_stay() -> None:
    found = GroupBudgets([2, 4]).select(fixed(0.1, 0.2, 0.9, 0.3, 0.8, 0.7), budget(4))
    assert found.kept == (1, 2, 4, 5) and found.evidence["order"] == [0, 3]
    assert found.evidence["groups"] == found.scheme.sizes == [[1, 2], [3, 4]]
    even = GroupBudgets(4).select(fixed(0.1, 0.2, 0.9, 0.3, 0.8, 0.7), budget(4))
    assert even.evidence["groups"] == [[2, 4], [2, 2]], "1.5 : 1.5, the first by order"


def test_negative_and_infinite_scores() -> None:
    above = GroupBudgets(3).select(fixed(-5, -4, -4, -2, -2, -2), budget(4))
    assert above.evidence["groups"] == [[1, 3], [3, 3]], "2 : 9 above the lowest"
    endless = GroupBudgets(3).select(fixed(torch.inf, 1, 2, 1, 1, 2), budget(2))
    assert endless.kept == (0, 5)
    assert GroupBudgets(3).select(fixed(*[torch.inf] * 6), budget(2)).kept == (2, 5)


def test_protected_units_stay_and_minimums_are_checked() -> None:
    scores = fixed(0.0, 0.0, 0.0, 0.9, 0.8, 0.7)
    found = GroupBudgets(3).select(scores, budget(4, protected=[0, 1]))
    assert found.kept == (0, 1, 3, 4)
    with pytest.raises(InputError, match="keeps fewer of some units than must stay"):
        GroupBudgets(3).select(scores, budget(4, minimums=[Minimum((0, 1, 2), 2)]))


@pytest.mark.parametrize(
    ("sizes", "keep", "message"),
    [
        ([2, 2], 4, r"sizes=\[2, 2\] adds up to 4 units but there are 6"),
        (1, 4, "sizes=1 makes 6 groups, in which 6 units must stay"),
    ],
)
def test_groups_that_do_not_fit_are_refused_before_scoring(sizes, keep, message) -> None:
    with pytest.raises(InputError, match=message):
        GroupBudgets(sizes).select(lambda kept: pytest.fail("scored"), budget(keep))


@pytest.mark.parametrize("sizes", [0, [], [2, 0]])
def test_no_groups(sizes) -> None:
    with pytest.raises(InputError, match=r"selector\.sizes=.* must be a positive number"):
        GroupBudgets(sizes)


def test_costs_are_refused() -> None:
    by_cost = Budget(budget(2).units, (1.0, 2.0, 1.0, 1.0, 1.0, 1.0), 3, "macs")
    with pytest.raises(InputError, match=r"budget\.macs=3: selector=group_budgets hands out a num"):
        GroupBudgets(3).select(fixed(*[1.0] * 6), by_cost)


def test_groups_are_recorded_as_the_decision_s_scheme_if_they_can_be() -> None:
    assert GroupBudgets(3).select(fixed(*[1.0] * 6), budget(4)).scheme is not None
    of_branches = GroupBudgets(3).select(fixed(*[1.0] * 6), budget(4, kind=BRANCHES))
    assert of_branches.scheme is None and of_branches.evidence["groups"] == [[2, 3], [2, 3]]
    many = GroupBudgets(28).select(fixed(*[1.0] * 28), budget(14, 28))
    assert many.scheme is None, "40 million keep-patterns"


def test_a_decision_with_its_groups(context) -> None:
    choice = FluxLite(GroupBudgets(2), 8).choose(context(3))
    groups = choice.scores["groups"]
    assert choice.scheme.sizes == groups and sum(keep for keep, _ in groups) == 3
    assert choice.decision(4).groups == choice.scheme
