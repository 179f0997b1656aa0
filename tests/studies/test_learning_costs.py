"""The study of cheaper mask learning."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tinyfusion.backbones.dit import DiT
from tinyfusion.budget import Budget
from tinyfusion.data.digits import Digits
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.gating.deltas import Frozen
from tinyfusion.gating.draws import GumbelTopK
from tinyfusion.gating.unit_gates import UnitGates
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.seeding import StepNoise
from tinyfusion.studies.budgets import Cell
from tinyfusion.studies.jobs import Job
from tinyfusion.studies.learning_costs import (
    CELLS,
    COUNTED,
    DENSE,
    WAYS,
    TrainingCost,
    gate_gradient_noise,
    plan,
    report,
    rows_of,
)
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.schedules import LearningRate, Linear


def finished(job: Job, kept: tuple[int, ...], seconds: float, steps: int = 300) -> None:
    job.folder.mkdir(parents=True)
    Decision(kept, 28, method="learned", scores={"steps": steps}).save(
        job.folder / Decision.file_name
    )
    write_json(job.folder / "metrics.json", {})
    write_json(job.folder / "cost.json", {"seconds": seconds})


def test_every_way_decides_in_every_cell(tmp_path: Path) -> None:
    jobs = plan(tmp_path, [0, 1, 2])
    assert len(jobs) == len({job.folder for job in jobs}) == 3 * len(CELLS) * len(WAYS)
    first = jobs[0]
    assert first.overrides == (
        "checkpoint=digits", "keep=7", "pruner.dense=true", "seed=0", COUNTED,
    )  # fmt: skip


def test_costs_and_choices_are_compared_with_the_dense_steps(tmp_path: Path) -> None:
    ways = {DENSE: WAYS[DENSE], "sparse": (), "settled": WAYS["settled"]}
    jobs = plan(tmp_path, [0, 1], [Cell("digits", "keep=2")], ways)
    by = {(job.pruner, job.seed): job for job in jobs}
    with pytest.raises(InputError, match="no finished decision"):
        report(tmp_path, jobs)
    finished(by[DENSE, 0], (0, 1), 100.0)
    finished(by["sparse", 0], (0, 1), 50.0)
    finished(by["settled", 0], (0, 5), 25.0, steps=200)
    finished(by["settled", 1], (0, 1), 30.0)
    rows = {(row["way"], row["seed"]): row for row in rows_of(jobs)}
    assert rows["sparse", 0]["times"] == 2.0 and rows["sparse", 0]["others"] == 0
    assert rows["settled", 0]["others"] == 1 and "times" not in rows["settled", 1]
    text = report(tmp_path, jobs)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| sparse | 1 | 50 | 2.00 | 300 | 1 of 1 | 0 |" in lines
    assert "| settled | 2 | 28 | 4.00 | 250 | 0 of 1 | 1 |" in lines
    assert "Not finished: 2 of 6 decisions." in text
    assert (tmp_path / "costs.md").read_text() == text


def test_the_seconds_of_interrupted_runs_are_added_up(tmp_path: Path) -> None:
    (tmp_path / "prune").mkdir()
    trainer: Any = SimpleNamespace(default_root_dir=str(tmp_path / "prune"))

    def train(end: Callable[[TrainingCost], None]) -> float:
        cost = TrainingCost()
        cost.on_train_start(trainer, None)  # type: ignore[arg-type]  # not looked at
        last = time.process_time() + 0.02
        while time.process_time() < last:
            pass
        end(cost)
        return read_json(tmp_path / "prune/cost.json", "cost")["seconds"]

    first = train(lambda cost: cost.on_exception(trainer, None, KeyboardInterrupt()))
    assert train(lambda cost: cost.on_train_end(trainer, None)) >= first + 0.02 >= 0.04


def test_fewer_gate_gradients_are_noisier() -> None:
    torch.manual_seed(0)
    net = DiT(8, 2, 1, 16, 4, 2, 2.0, num_classes=10, gate_bias_init=0.5)
    torch.nn.init.normal_(net.final_layer.linear.weight, std=0.1)
    Frozen().attach(net)
    gates = UnitGates(Budget.of(net.units(), 2), GumbelTopK())
    settings: dict[str, Any] = {
        "process": GaussianDiffusion(),
        "noise": StepNoise(0, "test"),
        "total_steps": 10,
        "optimizer": torch.optim.SGD,
        "learning_rate": LearningRate(1e-3, 1e-3),
        "clip_norm": 1.0,
        "label_drop": 0.1,
    }
    module = MaskLearning(net, gates, 2.0, Linear(4, 1), Linear(9, 9), None, **settings)
    found = gate_gradient_noise(module, Digits(), [0.5, 0.1, 1.0], 12, 16)
    assert found[1.0] == 1.0 < found[0.5] < found[0.1]
    assert module.gated.gate_gradients == 1.0
    logits: Tensor = gates.logits_L
    assert logits.grad is None
