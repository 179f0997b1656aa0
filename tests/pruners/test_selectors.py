"""From scores to blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tinyfusion.budget import Budget, Minimum
from tinyfusion.errors import InputError
from tinyfusion.pruners.knapsack import cheapest
from tinyfusion.pruners.selectors import (
    Greedy,
    Grouped,
    Knapsack,
    TopK,
    least_important,
)
from tinyfusion.scheme import parse_scheme
from tinyfusion.units import BLOCKS, Place, Unit


def fixed(*scores: float):
    """Scores that don't depend on which blocks run, and how often they were asked for."""
    calls: list[tuple[int, ...]] = []

    def score(kept) -> Tensor:
        calls.append(tuple(kept))
        return torch.tensor([scores[i] for i in kept], dtype=torch.float64)

    score.calls = calls
    return score


def budget(keep: int, sizes=(1,) * 4, protected=(), scheme=None, minimums=()) -> Budget:
    """``keep`` of blocks with these numbers of parameters."""
    units = (Unit(BLOCKS, Place("blocks", i, i + 1), i, size) for i, size in enumerate(sizes))
    return Budget.of(tuple(units), keep, protected, minimums, scheme)


def by_cost(limit: float, *costs: float, **further) -> Budget:
    return Budget(budget(1, (1,) * len(costs)).units, costs, limit, "macs", **further)


def test_least_important_first_and_of_equals_the_earlier() -> None:
    assert least_important(torch.tensor([0.5, 0.1, 0.1, 0.0])) == [3, 1, 2, 0]


def test_top_k_scores_once() -> None:
    score = fixed(0.5, -0.1, 0.3, 0.2)
    found = TopK().select(score, budget(2))
    assert found.kept == (0, 2) and found.evidence == {"order": [1, 3]}
    assert found.scores.tolist() == [0.5, -0.1, 0.3, 0.2] and score.calls == [(0, 1, 2, 3)]


def test_greedy_scores_again_after_each_removal() -> None:
    def score(kept) -> Tensor:
        # Blocks 1 and 2 can stand in for each other.
        alone = 0.9 if not {1, 2} <= set(kept) else 0.0
        return torch.tensor([{0: 0.5, 1: alone, 2: alone + 0.01, 3: 0.6}[i] for i in kept])

    wanted = budget(2)
    found = Greedy().select(score, wanted)
    assert found.kept == (2, 3)
    assert found.evidence["order"] == [1, 0]
    assert found.evidence["order_scores"] == pytest.approx([0.0, 0.5])
    assert found.scores.tolist() == pytest.approx([0.5, 0.0, 0.01, 0.6])
    assert TopK().select(score, wanted).kept == (0, 3)


def test_greedy_is_top_k_where_scores_do_not_change_and_keeps_to_protection() -> None:
    score = fixed(*torch.rand(9).tolist())
    wanted = budget(4, (1,) * 9, protected=[2, 8])
    one, other = TopK().select(score, wanted), Greedy().select(score, wanted)
    assert one.kept == other.kept and one.evidence["order"] == other.evidence["order"]
    assert {2, 8} <= set(one.kept) and len(one.kept) == 4
    lengths = [len(kept) for kept in score.calls[1:]]
    assert lengths == [9, 8, 7, 6, 5]


def test_grouped_keeps_the_best_of_each_group() -> None:
    score, scheme = fixed(0.9, 0.8, 0.7, 0.1, 0.2, 0.3), parse_scheme([[1, 2], [2, 4]], 6)
    found = Grouped().select(score, budget(3, (1,) * 6, scheme=scheme))
    assert found.kept == (0, 2, 5) and found.evidence == {"order": [1, 3, 4]}
    held = Grouped().select(score, budget(3, (1,) * 6, [3], scheme))
    assert held.kept == (0, 2, 3)


def test_grouped_needs_a_scheme_that_fits() -> None:
    score = fixed(*[0.0] * 4)
    scheme = parse_scheme("1:2", 4)
    with pytest.raises(InputError, match="keep=2: what decides within groups needs a scheme"):
        Grouped().select(score, budget(2))
    with pytest.raises(InputError, match="scheme=1:2 keeps 2 of 4 blocks but keep=3"):
        Grouped().select(score, budget(3, scheme=scheme))
    crowded = budget(2, protected=[2, 3], scheme=scheme)
    with pytest.raises(InputError, match=r"keeps 1 of 2\.\.3, but 2 of them are protected"):
        Grouped().select(score, crowded)
    assert not score.calls


def test_grouped_knows_no_costs() -> None:
    with pytest.raises(InputError, match=r"budget\.macs=2: selector=grouped keeps a number"):
        Grouped().select(fixed(0.0, 0.0), by_cost(2, 1, 2))


@pytest.mark.parametrize("selector", [TopK(), Greedy(), Knapsack()])
def test_costs_that_differ(selector) -> None:
    """A costly unit that does not fit is passed over; what is left goes to the next that does."""
    wanted = by_cost(5, 4, 1, 3, 2, 1)
    found = selector.select(fixed(0.9, 0.8, 0.7, 0.2, 0.1), wanted)
    assert found.kept == (0, 1) and wanted.cost(found.kept) == 5
    held = by_cost(5, 4, 1, 3, 2, 1, protected=frozenset([4]))
    found = selector.select(fixed(0.9, 0.8, 0.7, 0.2, 0.1), held)
    assert held.allows(found.kept)
    assert found.kept == ((1, 2, 4) if selector.name == "knapsack" else (0, 4))
    least = by_cost(5, 4, 1, 3, 2, 1, minimums=(Minimum((2, 3), 1),))
    found = selector.select(fixed(0.9, 0.8, 0.1, 0.05, 0.7), least)
    assert least.allows(found.kept)


def test_greedy_gives_back_what_still_fits() -> None:
    found = Greedy().select(fixed(0.1, 0.2, 0.9, 0.8), by_cost(5, 1, 3, 2, 2))
    assert found.kept == (0, 2, 3) and found.evidence["returned"] == [0]


@pytest.mark.parametrize("selector", [TopK(), Greedy(), Knapsack()])
def test_minimums_hold_among_equal_costs(selector) -> None:
    scores = fixed(0.1, 0.2, 0.3, 0.9, 0.8, 0.7)
    free = selector.select(scores, budget(3, (1,) * 6)).kept
    held = selector.select(scores, budget(3, (1,) * 6, minimums=[Minimum((0, 1, 2), 2)])).kept
    assert free == (3, 4, 5) and held == (1, 2, 3)


def sums_of_all_subsets(costs: list[float], sizes: list[int]) -> tuple[Tensor, Tensor]:
    items = len(costs)
    member = (torch.arange(2**items)[:, None] >> torch.arange(items)) % 2
    return member.double() @ torch.tensor(costs).double(), member @ torch.tensor(sizes)


@pytest.mark.parametrize("items", [1, 2, 5, 9, 13, 16])
def test_knapsack_against_brute_force_with_unequal_sizes(items: int) -> None:
    for _ in range(4):
        costs = torch.rand(items).double().tolist()
        sizes = torch.randint(1, 3_000_000, (items,)).tolist()
        least = int(torch.randint(1, sum(sizes) + 1, ()))
        found = cheapest(costs, sizes, least)
        cost, size = sums_of_all_subsets(costs, sizes)
        assert found.exact and sum(sizes[i] for i in found.items) >= least
        assert sum(costs[i] for i in found.items) == pytest.approx(float(cost[size >= least].min()))


@pytest.mark.parametrize("size", [1, 7, 23_893_632])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_knapsack_equals_top_k_for_equal_sizes_whatever_the_sign(size: int, shift: float) -> None:
    for depth, keep in ((28, 14), (28, 19), (28, 27), (56, 14), (7, 1)):
        score = fixed(*(torch.rand(depth).double() - shift).tolist())
        wanted = budget(keep, (size,) * depth, protected=[depth - 1])
        one, other = TopK().select(score, wanted), Knapsack().select(score, wanted)
        assert one.kept == other.kept and len(other.kept) == keep
        assert sorted(one.evidence["order"]) == sorted(other.evidence["order"])
        assert other.evidence["removed"] == other.evidence["to_remove"]
        assert other.evidence["exact"]


def by_parameters(limit: int, sizes: tuple[int, ...], protected=()) -> Budget:
    counted = budget(1, sizes)
    costs = tuple(map(float, sizes))
    return Budget(counted.units, costs, limit, "parameters", frozenset(protected))


def test_knapsack_trades_one_large_block_for_small_ones() -> None:
    sizes = (6, 2, 2, 2)
    found = Knapsack().select(fixed(0.5, 0.2, 0.2, 0.2), by_parameters(6, sizes))
    assert found.kept == (1, 2, 3), "half of the parameters, in one block, at less than 3 x 0.2"
    assert found.evidence["summed_score"] == pytest.approx(0.5)
    found = Knapsack().select(fixed(0.7, 0.2, 0.2, 0.2), by_parameters(6, sizes))
    assert found.kept == (0,) and found.evidence["order"] == [1, 2, 3]
    held = Knapsack().select(fixed(0.7, 0.2, 0.2, 0.2), by_parameters(6, sizes, [1]))
    assert held.kept == (1, 2, 3)
    counted = Knapsack().select(fixed(0.7, 0.2, 0.3, 0.4), budget(2, sizes))
    assert counted.kept == (0, 3), "so many blocks, whatever their size"


def test_knapsack_removes_no_block_beyond_the_budget() -> None:
    # Removing any block seems to help, but half of the parameters is what was asked for.
    found = Knapsack().select(fixed(-1.0, -1.0, -3.0, -0.1), by_parameters(8, (4, 4, 3, 5)))
    assert found.kept == (0, 1), "without 2 and 3, half is gone: no more, whatever it scores"
    assert found.evidence["removed"] == 8


@pytest.mark.parametrize("seed", range(3))
def test_knapsack_never_exceeds_the_budget_by_the_tolerance_of_its_solver(seed: int) -> None:
    sizes = tuple(torch.randint(10_000_000, 1_000_000_000, (12,)).tolist())
    scores = torch.rand(12).tolist()
    good = sum(sorted(sizes)[:7])
    wanted = by_parameters(good - 1, sizes)
    found = Knapsack().select(fixed(*scores), wanted)
    assert wanted.allows(found.kept)


def test_knapsack_of_two_kinds_of_blocks_is_exact_at_real_sizes() -> None:
    sizes = [12_596_224] * 28 + [23_893_632] * 28
    costs = torch.rand(56).double().tolist()
    least = sum(sizes) // 2
    found = cheapest(costs, sizes, least)
    assert found.exact and sum(sizes[i] for i in found.items) >= least
    # The best of each kind, for every number of the first kind and the least of the second.
    ranked = [sorted(costs[:28]), sorted(costs[28:])]
    totals = [
        sum(ranked[0][:a]) + sum(ranked[1][:b])
        for a in range(29)
        for b in range(29)
        if a * sizes[0] + b * sizes[-1] >= least
    ]
    assert sum(costs[i] for i in found.items) == pytest.approx(min(totals))


def test_knapsack_of_very_many_sizes_is_exact_and_keeps_to_the_budget() -> None:
    costs = torch.rand(40).double().tolist()
    sizes = torch.randint(10_000_000, 40_000_000, (40,)).tolist()
    least = sum(sizes) // 2
    found = cheapest(costs, sizes, least)
    removed, spent = (sum(values[i] for i in found.items) for values in (sizes, costs))
    assert found.exact and removed >= least
    assert all(removed - sizes[i] < least for i in found.items), "each of them is needed"
    # Less than this is not possible even where blocks can be removed in part.
    bound, rest = 0.0, least
    for item in sorted(range(40), key=lambda i: costs[i] / sizes[i]):
        share = min(1.0, rest / sizes[item])
        bound, rest = bound + share * costs[item], rest - share * sizes[item]
    assert bound <= spent <= 1.03 * bound
    # Nearly everything has to go.
    assert len(cheapest(costs, sizes, sum(sizes)).items) == 40


def test_knapsack_that_is_too_hard_stops_and_says_so() -> None:
    # Every block costs what it weighs: very many sets are about as good as the best one.
    sizes = torch.randint(10_000_000, 40_000_000, (28,)).tolist()
    costs = [size / 1e7 for size in sizes]
    least = sum(sizes) // 2
    rough, fine = (cheapest(costs, sizes, least, nodes) for nodes in (1, 20))
    spent = [sum(costs[i] for i in found.items) for found in (rough, fine)]
    assert not rough.exact and not fine.exact
    for found in (rough, fine):
        assert sum(sizes[i] for i in found.items) >= least
    assert spent[1] <= spent[0] <= 1.01 * spent[1]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_knapsack_takes_earlier_blocks_of_equal_sets(scale: float) -> None:
    quarter = 0.25 * scale
    assert cheapest([quarter] * 30, [7] * 30, 7 * 25).items == tuple(range(25))
    # Larger blocks count as earlier, so that 1 and 3 go before 0 and 2.
    assert cheapest([quarter] * 4, [1, 2, 1, 2], 2).items == (1,)
    assert cheapest([quarter] * 4, [1, 2, 1, 2], 5).items == (0, 1, 3)
    # Of sets that end with the same block, the smaller one: 1 and 2 instead of 0 and 2.
    assert cheapest([2 * quarter, 2 * quarter, quarter], [4, 3, 2], 5).items == (1, 2)
    assert cheapest([quarter * (1 + 1e-9), quarter], [1, 1], 1).items == (1,), "no tie"


def test_knapsack_takes_infinite_scores_last() -> None:
    inf = float("inf")
    found = Knapsack().select(fixed(inf, 0.3, 0.2, inf), budget(2, (2, 2, 2, 2)))
    assert found.kept == (0, 3)
    assert len(Knapsack().select(fixed(inf, inf, inf, 0.1), budget(1, (2, 2, 2, 2))).kept) == 1


def test_knapsack_counts_blocks_without_parameters() -> None:
    assert Knapsack().select(fixed(0.3, 0.1, 0.2), budget(1, (0, 0, 0))).kept == (0,)
