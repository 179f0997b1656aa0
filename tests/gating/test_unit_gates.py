"""One logit per unit, and what is decided by it."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
import torch

from tests.gating.conftest import units_of
from tinyfusion.budget import Budget, Minimum
from tinyfusion.gating.draws import GumbelTopK
from tinyfusion.gating.penalised import PenalisedCost
from tinyfusion.gating.unit_gates import UnitGates, decide, improved
from tinyfusion.seeding import Rows, StepNoise


def test_the_largest_logits_are_decided_and_logits_are_copies() -> None:
    gates = UnitGates(Budget.of(units_of(5), 2, protected=[4]), GumbelTopK())
    gates.scale = 100.0
    assert list(gates.state_dict()) == ["logits_L"]
    with torch.no_grad():
        gates.logits_L.copy_(torch.tensor([0.02, 0.05, 0.01, 0.04, -1.0]))
    logits = gates.logits()
    state = gates.state(logits)
    assert state.kept == (1, 4) and state.groups == ()
    wanted = torch.tensor([2.0, 5.0, 1.0, 4.0]).softmax(0)
    assert state.inclusion == pytest.approx([*wanted.tolist(), 1.0], abs=1e-6)
    assert state.margin == pytest.approx(float(wanted[1]), abs=1e-6)
    logits[0][3] += 1
    assert gates.state(logits).kept == (3, 4) and gates.state(gates.logits()).kept == (1, 4)


def test_every_set_is_drawn_and_every_logit_gets_a_gradient() -> None:
    gates = UnitGates(Budget.of(units_of(5), 2), GumbelTopK())
    gates.temperature, gates.scale = 4.0, 100.0
    noise = StepNoise(7, "test").gumbel("gumbel", Rows(0, 0, 400), gates.num_draws)
    keep = gates(noise)
    assert {tuple(row.nonzero().flatten().tolist()) for row in keep} == set(
        combinations(range(5), 2)
    )
    (keep * torch.randn(400, 5)).sum().backward()
    assert gates.logits_L.grad is not None and (gates.logits_L.grad != 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gates(noise), keep) and gates(noise).dtype == torch.float32


def best(values, costs, limit) -> float:
    sets = (s for n in range(len(costs) + 1) for s in combinations(range(len(costs)), n))
    return max(sum(values[i] for i in s) for s in sets if sum(costs[i] for i in s) <= limit)


@pytest.mark.parametrize("seed", range(6))
def test_a_decision_by_cost_meets_the_budget_and_leaves_no_swap(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    costs = tuple((torch.rand(10, generator=draws) * 5 + 0.5).tolist())
    minimums = (Minimum((0, 1, 2), 1),) if seed % 2 else ()
    budget = Budget(units_of(10), costs, 9.0, "macs", minimums=minimums)
    logits = torch.randn(10, generator=draws)
    chances = GumbelTopK().inclusion(logits, budget)
    kept = decide(logits, chances, budget)
    assert budget.allows(kept)
    spare = budget.limit - budget.cost(kept)
    outside = [unit for unit in range(10) if unit not in kept]
    assert all(costs[unit] > spare for unit in outside)
    for unit in outside:
        for other in kept:
            if logits[unit] > logits[other] and chances[unit] >= chances[other]:
                assert not budget.allows({*kept, unit} - {other})
    if not minimums:
        summed = float(chances[list(kept)].sum())
        assert summed == pytest.approx(best(chances.tolist(), costs, 9.0), abs=1e-6)


def test_far_apart_logits_of_unequal_costs_are_told_apart() -> None:
    """Chances are 0 and 1 to the last place there."""
    budget = Budget(units_of(5), (2.0, 1.0, 1.0, 1.0, 1.0), 3.0, "macs")
    logits = torch.tensor([900.0, 100.0, 300.0, 200.0, -100.0])
    assert decide(logits, GumbelTopK().inclusion(logits, budget), budget) == (0, 2)


@pytest.mark.parametrize("start", [(1, 4), (3, 4), (0,), (1, 3), (2, 3)])
def test_among_equal_chances_units_of_larger_logits_stay(start: tuple[int, ...]) -> None:
    """Whichever of the equally likely sets the solver returns."""
    budget = Budget(units_of(5), (2.0, 1.0, 1.0, 1.0, 1.0), 3.0, "macs")
    order = [0, 2, 3, 1, 4]
    kept = improved(set(start), order, [1.0, 1.0, 1.0, 1.0, 1.0], budget)
    # A set of single units is not left for the dearer one: only one is exchanged at a time.
    assert kept == ((0, 2) if 0 in start else (1, 2, 3))
    # Nothing is exchanged for what is likely less often.
    assert improved({0, 4}, order, [1.0, 0.0, 0.0, 0.0, 0.5], budget) == (0, 4)


def test_units_that_certainly_stay_are_told_apart_by_their_logits() -> None:
    """The penalty may leave more of them than the budget does, all of probability 1."""
    budget = Budget(units_of(4), (1.0, 1.01, 1.02, 1.03), 2.1, "macs")
    for logits in map(torch.tensor, permutations([400.0, 300.0, 200.0, 100.0])):
        kept = decide(logits, PenalisedCost().inclusion(logits, budget), budget)
        assert kept == tuple(logits.topk(2).indices.sort().values.tolist())
