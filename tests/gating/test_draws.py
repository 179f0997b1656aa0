"""Laws of random sets that use a budget exactly."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.gating.conftest import units_of
from tinyfusion.budget import Budget, Minimum
from tinyfusion.errors import InputError
from tinyfusion.gating.draws import (
    ConditionalBernoulli,
    GumbelTopK,
    among_largest,
    kept_marginals,
    largest,
    relaxed,
)
from tinyfusion.gating.pattern_gates import GroupGate
from tinyfusion.scheme import BlockGroup
from tinyfusion.seeding import Rows, StepNoise

EXACT = [GumbelTopK(), ConditionalBernoulli()]
COSTS = (3.0, 1.0, 2.0, 1.0, 4.0, 2.0)


def gumbel(rows: int, size: int) -> Tensor:
    return StepNoise(7, "test").gumbel("gumbel", Rows(0, 0, rows), size)


def by_cost(limit: float, **further) -> Budget:
    return Budget(units_of(len(COSTS)), COSTS, limit, "parameters", **further)


def test_relaxation_uses_the_budget_and_has_the_gradient_of_its_differences() -> None:
    values = (5 * torch.randn(6, 9, dtype=torch.float64)).requires_grad_()
    for costs, limit in ((torch.ones(9), 4.0), (torch.rand(9) + 0.1, 1.7)):
        costs = costs.double()
        soft = relaxed(values, costs, limit)
        assert_close((soft * costs).sum(1), torch.full((6,), limit).double(), atol=1e-6, rtol=0)
        assert torch.autograd.gradcheck(lambda v, c=costs, m=limit: relaxed(v, c, m), (values,))


def test_gradients_of_a_row_sum_to_zero_and_vanish_far_from_the_threshold() -> None:
    values = torch.tensor([[3.0, -1.0, 0.5, 0.2], [900.0, 600.0, -1.0, -400.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        (relaxed(values, torch.ones(4), 2.0) * torch.randn(2, 4)).sum(), values
    )
    assert gradient[0].sum().abs() < 1e-6 and gradient[0].abs().min() > 0
    assert gradient[1].tolist() == [0.0] * 4 and gradient.isfinite().all()


@pytest.mark.parametrize("draw", EXACT)
def test_equal_logits_give_every_unit_the_same_chance(draw) -> None:
    budget = Budget.of(units_of(28), 7)
    assert_close(draw.inclusion(torch.full((28,), 2.0), budget), torch.full((28,), 0.25).double())
    values = torch.full((1, 28), 2.0)
    assert_close(relaxed(values, torch.ones(28), 7.0), torch.full((1, 28), 0.25))


@pytest.mark.parametrize("draw", EXACT)
@pytest.mark.parametrize("protected", [(), (2,)])
def test_draws_are_sets_of_the_budget_as_often_as_said(draw, protected) -> None:
    budget = Budget.of(units_of(8), 3, protected)
    weights = torch.tensor([0.0, 2.0, -1.0, 0.5, 3.0, -2.0, 0.0, 1.0])
    rows = 20_000
    mask = draw.mask(weights, gumbel(rows, 8), 1.0, budget)
    assert set(mask.unique().tolist()) == {0.0, 1.0}, "zeros and ones are exact"
    assert (mask.sum(1) == 3).all()
    chances = draw.inclusion(weights, budget)
    assert float(chances.sum()) == pytest.approx(3, abs=1e-6)
    assert (mask.double().mean(0) - chances).abs().max() < 4 * 0.5 / rows**0.5
    assert chances[list(protected)].tolist() == [1.0] * len(protected)


def test_one_of_them_is_the_softmax() -> None:
    weights = torch.tensor([0.0, 2.0, -1.0, 40.0, 39.0]).double()
    for found in (among_largest(weights, 1), kept_marginals(weights, 1)):
        assert_close(found, weights.softmax(0))


def test_two_units_are_a_group_of_one_in_two() -> None:
    """The same sets for the same noise; the relaxation is that gate's at twice the temperature."""
    gate, noise = GroupGate(BlockGroup(0, 1, 2)), gumbel(500, 2)
    with torch.no_grad():
        gate.logits_C.copy_(torch.tensor([0.021, 0.02]))
    weights, factors = (100 * gate.logits_C.detach()).requires_grad_(), torch.randn(500, 2)
    mask = GumbelTopK().mask(weights, noise, 0.5, Budget.of(units_of(2), 1))
    wanted = gate(noise, 1.0, 100.0)
    assert torch.equal(mask, wanted.round())
    (own,) = torch.autograd.grad((mask * factors).sum(), weights)
    (other,) = torch.autograd.grad((wanted * factors).sum(), gate.logits_C)
    assert_close(own, other / 100)


def test_marginals_and_their_gradient_against_all_sets() -> None:
    weights = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def by_hand(weights: Tensor) -> Tensor:
        sets = torch.tensor(
            [[float(i in kept) for i in range(6)] for kept in combinations(range(6), 2)]
        )
        return (sets.double() @ weights).softmax(0) @ sets.double()

    factors = torch.randn(6, dtype=torch.float64)
    found, wanted = kept_marginals(weights, 2), by_hand(weights)
    assert_close(found, wanted)
    gradients = [torch.autograd.grad((p * factors).sum(), weights)[0] for p in (found, wanted)]
    assert_close(*gradients)


def test_the_gradient_of_exact_marginals_is_the_draws_own() -> None:
    weights, noise = torch.randn(6, requires_grad=True), gumbel(4, 6)
    budget, factors = Budget.of(units_of(6), 2), torch.randn(4, 6)
    mask = ConditionalBernoulli().mask(weights, noise, 9.0, budget)
    (own,) = torch.autograd.grad((mask * factors).sum(), weights)
    marginals = kept_marginals(weights, 2)
    (other,) = torch.autograd.grad((marginals * factors.sum(0)).sum(), weights)
    assert_close(own, other)
    with pytest.raises(InputError, match=r"budget\.parameters=5: ConditionalBernoulli draws a num"):
        ConditionalBernoulli().check(by_cost(5))


def test_distant_logits_stay_finite() -> None:
    weights = torch.tensor([0.0, 500.0, -500.0, 1.0, 499.0], requires_grad=True)
    budget = Budget.of(units_of(5), 2)
    for draw in EXACT:
        mask = draw.mask(weights, gumbel(9, 5), 0.1, budget)
        (gradient,) = torch.autograd.grad(mask[:, 1].sum(), weights)
        assert gradient.isfinite().all() and (mask.sum(1) == 2).all()
        assert draw.inclusion(weights, budget) == pytest.approx([0, 1, 0, 0, 1], abs=1e-6)


def test_sets_of_unequal_costs_fill_the_budget() -> None:
    budget = by_cost(6, protected=frozenset([5]), minimums=(Minimum((0, 1, 2), 1),))
    values = torch.randn(300, 6)
    kept = largest(values, budget)
    for row, value in zip(kept, values, strict=True):
        order = value.argsort(descending=True).tolist()
        stays = tuple(row.nonzero().flatten().tolist())
        assert stays == budget.fill(order) and budget.allows(stays)
        spare = budget.limit - budget.cost(stays)
        assert all(COSTS[unit] > spare for unit in range(6) if unit not in stays)
    chances = GumbelTopK().inclusion(torch.zeros(6), budget)
    assert chances[5] == 1 and float(chances[:3].sum()) >= 1
    mask = GumbelTopK().mask(torch.zeros(6, requires_grad=True), gumbel(50, 6), 1.0, budget)
    assert mask.requires_grad and (mask @ torch.tensor(COSTS) <= 6).all()
