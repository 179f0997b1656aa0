"""The benchmark of both sides: equal work, turns, ratios from known seconds, rows and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyfusion.errors import InputError
from tinyfusion.files import read_json
from tinyfusion.studies import step_speed
from tinyfusion.studies.plain_steps import PlainLoop
from tinyfusion.studies.step_sides import Setting, Sides, mask_learning, recovery
from tinyfusion.studies.step_speed import row_of, sampling_rows, table, training_row
from tinyfusion.training.early_stop import EarlyStop
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.recovery import Recovery

FIELDS = {
    "work", "network", "batch", "compiled", "against", "base_s", "ours_s", "ratio", "ratio_q1",
    "ratio_q3", "rounds", "base_bytes", "ours_bytes",
}  # fmt: skip


class Clock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tiny(**changes: Any) -> Setting:
    torch.set_num_threads(1)
    sizes = {"width": 16, "tokens": 4, "batch": 4, "depth": 4, "rounds": 2, "sampling_steps": 2}
    return Setting(**{**sizes, **changes})


def observed(sides: Sides) -> tuple[Sides, DenoiserTraining]:
    """Both sides, and the module that ours trains."""
    module = sides.phase.module()
    return sides._replace(phase=replace(sides.phase, module=lambda: module)), module


def test_ratios_are_those_within_rounds() -> None:
    # The load doubles in the last round for both.
    row = row_of("w", tiny(), "b", [3.0, 4.0, 8.0], [2.0, 4.0, 4.0])
    assert row["ratio"] == 1.5 and (row["ratio_q1"], row["ratio_q3"]) == (1.25, 1.75)
    assert (row["base_s"], row["ours_s"], row["rounds"]) == (4.0, 4.0, 3)


def test_trainings_take_turns_and_the_first_round_is_not_timed(monkeypatch) -> None:
    clock, order = Clock(), []
    theirs, ours = PlainLoop.step, DenoiserTraining.training_step

    def plain_step(self: PlainLoop, batch: Any) -> float:
        order.append("plain")
        clock.now += 6.0 if batch.step >= 2 else 100.0
        return theirs(self, batch)

    def our_step(self: DenoiserTraining, batch: Any, batch_idx: int) -> Any:
        order.append("ours")
        clock.now += 4.0 if batch.step >= 2 else 1000.0
        return ours(self, batch, batch_idx)

    monkeypatch.setattr(PlainLoop, "step", plain_step)
    monkeypatch.setattr(DenoiserTraining, "training_step", our_step)
    setting = tiny(steps=2, rounds=2, clock=clock)
    row = training_row("mask", mask_learning(setting, 2, "full"), setting)
    assert order == (["ours"] * 2 + ["plain"] * 2) * 3
    assert (row["base_s"], row["ours_s"], row["ratio"], row["rounds"]) == (6.0, 4.0, 1.5, 2)
    assert set(row) == FIELDS and row["batch"] == 4 and row["against"] == "straightforward"


def test_both_sides_of_mask_learning_do_the_same_work() -> None:
    setting = tiny()
    sides, module = observed(mask_learning(setting, 2, "full"))
    row = training_row("mask", sides, setting)
    assert isinstance(module, MaskLearning) and module.global_step == 2 * (1 + setting.rounds)
    start = setting.net()
    for (name, mine), their, first in zip(
        module.trained_net.named_parameters(),
        sides.plain.net.parameters(),
        start.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(mine, their, rtol=0, atol=2e-5, msg=name)
        assert name == "pos_embed" or not torch.equal(mine, first), name
    assert 0 < row["ours_bytes"] <= row["base_bytes"]


def test_both_sides_of_recovery_do_the_same_work() -> None:
    setting = tiny()
    sides, module = observed(recovery(setting, 2))
    assert isinstance(module, Recovery) and module.pairs == [(0, 1), (1, 3)] == sides.plain.pairs
    row = training_row("recovery", sides, setting)
    assert set(row) == FIELDS and 0 < row["ours_bytes"] <= row["base_bytes"]
    for name, mine in module.student.named_parameters():
        their = dict(sides.plain.student.named_parameters())[name]
        torch.testing.assert_close(mine, their, rtol=0, atol=2e-5, msg=name)


def test_low_rank_updates_are_alike_on_both_sides() -> None:
    setting = tiny()
    sides, module = observed(mask_learning(setting, 1, "lora"))
    row = training_row("mask", sides, setting)
    trained = [sum(p.numel() for p in net.parameters() if p.requires_grad)
               for net in (module.trained_net, sides.plain.net)]  # fmt: skip
    assert trained[0] == trained[1] > 0
    assert 0 < row["ours_bytes"] <= 1.02 * row["base_bytes"]


def test_further_options_reach_our_side() -> None:
    _, learned = observed(mask_learning(tiny(), 2, "lora", stop=EarlyStop(0.5, 1.0)))
    assert learned._stop == EarlyStop(0.5, 1.0)
    _, recovered = observed(recovery(tiny(), 2, calibration_samples=7))
    assert recovered.objective.calibration_samples == 7


def test_sampling_is_compared_at_equal_depth_and_between_depths(monkeypatch) -> None:
    clock = Clock()

    def samples(seconds: float, net: Any) -> None:
        clock.now += seconds * net.depth

    monkeypatch.setattr(step_speed, "plain_sampling", lambda net, setting: samples(3.0, net))
    monkeypatch.setattr(step_speed, "sampling_run", lambda net, *_: lambda: samples(2.0, net))
    rows = sampling_rows(tiny(clock=clock), [2, 1])
    assert all(set(row) == FIELDS for row in rows)
    assert [(row["work"], row["against"], row["ratio"]) for row in rows] == [
        ("sampling, 4 blocks", "straightforward", 1.5),
        ("sampling, 2 blocks", "straightforward", 1.5),
        ("sampling, 1 blocks", "straightforward", 1.5),
        ("sampling, 2 blocks", "ours, 4 blocks", 2.0),
        ("sampling, 1 blocks", "ours, 4 blocks", 4.0),
    ]
    assert (rows[0]["base_s"], rows[0]["ours_s"]) == (12.0, 8.0)
    assert "| 1.50 [1.50, 1.50] |" in table(rows)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": 5}, "tokens=5 must be a square number"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"sampling_steps": 1}, "sampling_steps=1 must be at least 2"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**wrong)


def test_an_unknown_update_is_refused() -> None:
    with pytest.raises(InputError, match="delta='none' is not known; valid: lora, full"):
        mask_learning(tiny(), 2, "none")


SIZES = "--width 16 --depth 4 --tokens 4 --batch 2 --keep 2 --rounds 1 --steps 1 --images 1"


@pytest.fixture
def benchmark(script, capsys):
    """``benchmark("--only mask ...")``: what the script prints."""

    def run(options: str) -> str:
        script("step_benchmark").main([*SIZES.split(), *options.split()])
        return capsys.readouterr().out

    return run


def test_the_script_measures_everything(benchmark, tmp_path: Path) -> None:
    file = tmp_path / "found.md"
    printed = benchmark(f"--sampling-steps 2 --processor-time --output {file}")
    text = file.read_text()
    assert text in printed and "processor time" in text and "1 thread(s)" in text
    works = [line.split(" | ")[0].strip("| ") for line in text.splitlines()[4:]]
    assert works == [
        "mask-learning step, 2 of 4, lora",
        "mask-learning step, 2 of 4, full",
        "recovery step, 2 of 4",
        "sampling, 4 blocks",
        "sampling, 2 blocks",
        "sampling, 2 blocks",
    ]


def test_the_script_measures_what_was_asked_for(benchmark, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    benchmark(f"--only mask --delta full --output {file}")
    (row,) = read_json(file, "rows")
    assert set(row) == FIELDS and row["work"] == "mask-learning step, 2 of 4, full"
    assert row["ratio"] == pytest.approx(row["base_s"] / row["ours_s"]) and row["ratio"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output rows.csv", "must end in .md or .json"),
        ("--keep 9 --only mask", "keep=9"),
        ("--rounds 0", "rounds=0 must be at least 1"),
    ],
)
def test_the_script_refuses_in_one_line(benchmark, options: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        benchmark(options)


def test_a_network_without_known_sizes_needs_them(script) -> None:
    with pytest.raises(SystemExit, match="--width 48: give --tokens and --batch"):
        script("step_benchmark").main(["--width", "48"])
