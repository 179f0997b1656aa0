"""Coins for units, steered to a budget by a penalty on the expected cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from tests.gating.conftest import units_of
from tinyfusion.budget import Budget, Minimum
from tinyfusion.errors import InputError
from tinyfusion.gating.penalised import PenalisedCost
from tinyfusion.gating.unit_gates import UnitGates
from tinyfusion.seeding import Rows, StepNoise

COSTS = (3.0, 1.0, 2.0, 1.0, 4.0, 2.0)


def budget(limit: float, **further) -> Budget:
    return Budget(units_of(len(COSTS)), COSTS, limit, "macs", **further)


def test_the_expected_cost_is_that_of_many_draws() -> None:
    weights = torch.tensor([0.5, -1.0, 2.0, 0.0, -0.5, 1.0])
    wanted = budget(4.0, protected=[1])
    noise = StepNoise(7, "test").gumbel("gumbel", Rows(0, 0, 200_000), 6)
    drawn = PenalisedCost().mask(weights, noise, 1.0, wanted)
    inclusion = PenalisedCost().inclusion(weights, wanted)
    assert inclusion[1] == 1 and set(drawn.unique().tolist()) == {0.0, 1.0}
    assert_close(drawn.double().mean(0), inclusion, atol=5e-3, rtol=0)
    cost = float((drawn * torch.tensor(COSTS)).sum(1).mean())
    penalty = PenalisedCost(weight=1.0).penalty(weights, wanted)
    assert float(penalty) == pytest.approx(math.log(cost), abs=5e-3)


def test_the_sign_of_the_penalty_flips_around_the_budget() -> None:
    weights = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0], requires_grad=True)  # costs 7
    over, inside, under = (PenalisedCost().penalty(weights, budget(x)) for x in (6.9, 7.6, 7.7))
    assert over > 0 and inside == 0 and under == -over
    (down,) = torch.autograd.grad(over, weights)
    (up,) = torch.autograd.grad(under, weights)
    assert (down > 0).all() and torch.equal(up, -down)


def test_without_a_task_the_penalty_leads_to_the_budget() -> None:
    gates = UnitGates(budget(6.0), PenalisedCost(), torch.randn(6))
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.05)
    for step in range(200):
        gates(StepNoise(7, "test").gumbel("gumbel", Rows(step, 0, 1), 6))
        optimizer.zero_grad()
        gates.penalty.backward()
        optimizer.step()
    cost = float(((gates.logits_L > 0) * torch.tensor(COSTS)).sum())
    # One unit may be the difference: the likeliest set moves by whole units.
    assert abs(cost - 6.0) <= max(COSTS)
    state = gates.state(gates.logits())
    assert gates.budget.allows(state.kept)


def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="without minimums"):
        PenalisedCost().check(budget(6.0, minimums=(Minimum((0, 1), 1),)))
    with pytest.raises(InputError, match=r"weight=0 must be positive"):
        PenalisedCost(weight=0)
    with pytest.raises(InputError, match=r"tolerance=1\.0"):
        PenalisedCost(tolerance=1.0)
