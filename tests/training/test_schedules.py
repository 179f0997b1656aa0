"""Schedules are functions of the step."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from tinyfusion.training.schedules import LearningRate, Linear, progress


def test_progress_runs_from_zero_to_one_and_no_further() -> None:
    assert [progress(step, 5) for step in range(7)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_one_step_is_no_division_by_zero() -> None:
    assert progress(0, 1) == 0
    assert Linear(4.0, 0.1)(0, 1) == 4.0
    assert LearningRate(1e-3, 1e-5).factor(0, 1) == 1.0


def test_temperature_of_the_paper() -> None:
    temperature = Linear(4.0, 0.1)
    assert temperature(0, 10_009) == 4.0
    assert temperature(5004, 10_009) == pytest.approx(2.05)
    assert temperature(10_008, 10_009) == pytest.approx(0.1)


def test_constant_rate() -> None:
    rate = LearningRate(1e-4, 1e-4)
    assert [rate.factor(step, 10) for step in range(10)] == [1.0] * 10


def test_cosine_from_peak_to_end_has_as_many_steps_as_the_run() -> None:
    rate = LearningRate(2e-4, 1e-4)
    values = [2e-4 * rate.factor(step, 100) for step in range(101)]
    assert values[0] == pytest.approx(2e-4)
    assert values[25] == pytest.approx(1e-4 + 0.5e-4 * (1 + math.cos(math.pi / 4)))
    assert values[50] == pytest.approx(1.5e-4)
    assert values[99] > 1e-4  # the last step
    assert values[100] == pytest.approx(1e-4)
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("warm_up", [0, 7])
def test_cosine_is_that_of_torch(warm_up: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=1e-5)
    rate = LearningRate(2e-3, 1e-5, warm_up)
    for step in range(30):
        expected = optimizer.param_groups[0]["lr"]
        assert 2e-3 * rate.factor(warm_up + step, warm_up + 30) == pytest.approx(expected)
        optimizer.step()
        theirs.step()


def test_warm_up_rises_linearly_into_the_cosine() -> None:
    rate = LearningRate(1.0, 0.0, warm_up=4)
    values = [rate.factor(step, 14) for step in range(14)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rate.factor(14, 14) == pytest.approx(0.0)
    assert values[9] == pytest.approx(0.5)


def test_every_group_keeps_its_own_peak() -> None:
    rate = LearningRate(1e-4, 1e-5)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-4, 1e-3)]
    optimizer = torch.optim.AdamW(groups)
    LambdaLR(optimizer, lambda step: rate.factor(step + 5, 10))
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([5.5e-5, 5.5e-4])
