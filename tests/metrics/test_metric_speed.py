"""MACs against formulas by hand; timing with a clock that the test sets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tinyfusion.backbones.dit import DiT
from tinyfusion.errors import InputError
from tinyfusion.metrics import speed
from tinyfusion.metrics.speed import (
    compare_speed,
    macs,
    median_and_range,
    parameters,
    quartiles,
    sampling_run,
    time_in_turn,
)
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.guidance import Guidance


def dit_macs(side: int, patch: int, channels: int, width: int, depth: int) -> int:
    """One DiT forward of one image, learned variance, MLP ratio 4."""
    tokens = (side // patch) ** 2
    pixels = patch * patch * channels
    per_block = (
        tokens * width * 3 * width  # q, k, v
        + 2 * tokens * tokens * width  # scores, and their product with v
        + tokens * width * width  # projection
        + 2 * tokens * width * 4 * width  # MLP
        + width * 6 * width  # adaLN
    )
    embedding = tokens * pixels * width + 256 * width + width * width
    final = width * 2 * width + tokens * width * 2 * pixels
    return depth * per_block + embedding + final


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_macs_follow_the_formula_attention_included(device):
    with torch.device(device):
        net = DiT(8, 2, 1, hidden_size=32, depth=3, num_heads=4, num_classes=10)
    assert macs(net) == dit_macs(8, 2, 1, width=32, depth=3)
    assert all(p.device.type == device for p in net.parameters())


def test_macs_of_the_published_model():
    with torch.device("meta"):
        net = DiT()
    assert macs(net) == dit_macs(32, 2, 4, width=1152, depth=28)
    assert macs(net) / 1e9 == pytest.approx(118.6, abs=0.1)  # DiT paper, table 4


def test_macs_of_any_module_with_given_inputs():
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 16, 7))
    assert macs(net, (torch.zeros(1, 3, 4, 4),)) == 16 * 5 * 3 * 9 + 80 * 7
    with pytest.raises(InputError, match="Sequential is no Backbone"):
        macs(net)


def test_parameters_include_the_position_table():
    net = DiT(8, 2, 1, hidden_size=64, depth=28, num_heads=4, num_classes=10)
    assert parameters(net) == 2_122_760


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless a routine advances it."""
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    return now


def routine(clock, name, seconds, calls, images=12):
    durations = iter(seconds)

    def run() -> int:
        calls.append(name)
        clock[0] += next(durations)
        return images

    return run


def test_routines_are_timed_in_turn_and_compared_within_rounds(clock):
    calls: list[str] = []
    # The load doubles in the third timed round for both: rates halve, their ratio stays.
    runs = {
        "teacher": routine(clock, "teacher", [90, 4, 4, 8], calls),
        "student": routine(clock, "student", [70, 2, 1, 4], calls),
    }
    measured = compare_speed(runs, repeats=3, warmup=1)
    assert calls == ["teacher", "student"] * 4
    assert measured["teacher"] == {
        "images_per_s": 3,
        "images_per_s_min": 1.5,
        "images_per_s_max": 3,
        "ratio": 1,
    }
    assert measured["student"]["images_per_s"] == 6
    assert measured["student"]["ratio"] == 2


@pytest.mark.parametrize(
    "runs, repeats, message",
    [
        ({}, 3, "runs is empty"),
        ({"a": lambda: 1}, 0, "rounds must be at least 1, got 0"),
        ({"a": lambda: 0}, 1, "'a' must return the number of images made, got 0"),
    ],
)
def test_untimeable_routines_are_refused(runs, repeats, message):
    with pytest.raises(InputError, match=message):
        compare_speed(runs, repeats)


def test_seconds_are_those_of_the_timed_rounds_in_order(clock):
    calls: list[str] = []
    told: list[int] = []
    runs = {
        "a": routine(clock, "a", [50, 1, 3], calls),
        "b": routine(clock, "b", [60, 2, 5], calls),
    }
    seconds = time_in_turn(runs, rounds=2, warm_up=1, on_round=told.append)
    assert seconds == {"a": [1, 3], "b": [2, 5]}
    assert calls == ["a", "b"] * 3 and told == [1, 2]
    unwarmed = {"a": routine(clock, "a", [7, 8], calls)}
    assert time_in_turn(unwarmed, rounds=2, warm_up=0) == {"a": [7, 8]}


def test_spread_is_median_least_and_largest():
    assert median_and_range("x", [3.0, 1.0, 7.0]) == {"x": 3.0, "x_min": 1.0, "x_max": 7.0}


def test_quartiles_leave_single_slow_rounds_out():
    assert quartiles("x", [3.0, 1.0, 5.0, 2.0, 900.0]) == {"x_q1": 2.0, "x_q3": 5.0}
    assert quartiles("x", [3.0]) == {"x_q1": 3.0, "x_q3": 3.0}


@pytest.mark.parametrize("scale, seen", [(1.0, 3), (2.0, 6)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_run_is_the_real_sampling(scale, seen, dtype):
    net = DiT(4, 2, 1, hidden_size=8, depth=1, num_heads=2, num_classes=3)
    batches, products = [], set()
    net.blocks[0].register_forward_hook(lambda _, inputs, out: batches.append(len(inputs[0])))
    net.blocks[0].mlp.fc1.register_forward_hook(lambda _, inputs, out: products.add(out.dtype))
    sampler, guidance = AncestralSampler(2), Guidance(scale)
    run = sampling_run(net, GaussianDiffusion(), sampler, guidance, 5, 3, dtype=dtype)
    assert run() == 5
    # Two steps of a batch of three, then of the two that are left.
    assert batches == [seen, seen, seen * 2 // 3, seen * 2 // 3]
    assert products == {dtype or torch.float32}


def test_the_matrix_peak_is_operations_over_the_best_time(monkeypatch):
    monkeypatch.setattr(speed, "time_in_turn", lambda runs, rounds: {"products": [0.5, 0.25, 2.0]})
    assert speed.matrix_peak(torch.device("cpu"), side=16, repeats=5) == 2 * 16**3 * 5 / 0.25
    monkeypatch.undo()
    assert speed.matrix_peak(torch.device("cpu"), torch.bfloat16, side=16, repeats=2) > 0
