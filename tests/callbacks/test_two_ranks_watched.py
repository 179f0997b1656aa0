"""Scores and samples during training in two processes: both score, the first one writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from tinyfusion.backbones.dit import DiT
from tinyfusion.callbacks.evaluate import EvaluateDuringTraining
from tinyfusion.callbacks.sample_grid import SampleGrid
from tinyfusion.data.digits import Digits
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.pipeline.fit import fit
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.generate import Drawing
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.seeding import StepNoise
from tinyfusion.training.pretrain import Pretraining
from tinyfusion.training.schedules import LearningRate
from tinyfusion.training.settings import TrainerSettings, TrainingSettings

STEPS, SAMPLES = 4, 20


def pretrain(folder: Path, monkeypatch: pytest.MonkeyPatch, **trainer: Any) -> dict[str, Any]:
    """Train on the digits with everything that watches, every second step.

    Returns:
        Scores by step, and the batches of samples that were drawn for them.
    """
    drawn: list[int] = []
    draw = Drawing.draw

    def noted(self: Drawing, batch: int, on_step: Any = None) -> torch.Tensor:
        if len(self) == SAMPLES:
            drawn.append(batch)
        return draw(self, batch, on_step)

    monkeypatch.setattr(Drawing, "draw", noted)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    source, process = Digits(), GaussianDiffusion()
    net = DiT(8, 2, 1, hidden_size=16, depth=2, num_heads=2, num_classes=10)
    module = Pretraining(
        net,
        0.9,
        HeldOutLoss(process, *source.held_out(), 1),
        2,
        process=process,
        noise=StepNoise(0, "pretrain"),
        total_steps=STEPS,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, eps=1e-4),
        learning_rate=LearningRate(1e-3, 1e-4),
        clip_norm=1.0,
        label_drop=0.1,
    )
    evaluation = Evaluation(
        SAMPLES,
        AncestralSampler(2),
        Guidance(),
        held_out_repeats=1,
        speed_samples=0,
        batch_size=8,
    )
    watching = EvaluateDuringTraining(2, evaluation)
    callbacks = [watching, SampleGrid(2, AncestralSampler(2))]
    first = os.environ.get("RANK", "0") == "0"
    loggers = [CSVLogger(folder, name="log", flush_logs_every_n_steps=1)] if first else []
    settings = TrainerSettings("cpu", progress=False, resume_every=2, log_every=2, **trainer)
    fit(module, source, TrainingSettings(STEPS, 8), settings, folder, "p", 0, loggers, callbacks)
    return {"history": watching.history, "drawn": drawn}


def logged(folder: Path) -> dict[str, list[float]]:
    rows = np.genfromtxt(folder / "log/version_0/metrics.csv", delimiter=",", names=True)
    names = ("trainloss", "evaluatefid", "held_outloss", "held_outloss_live")
    return {name: rows[name][~np.isnan(rows[name])].tolist() for name in names}


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_scores_and_samples_are_those_of_one_process(
    tmp_path: Path, on_ranks, monkeypatch, strategy: str
) -> None:
    with monkeypatch.context() as patch:
        assert pretrain(tmp_path / "one", patch)["drawn"] == [0, 1, 2] * 2
    first, second = on_ranks(
        2, lambda: pretrain(tmp_path / "two", monkeypatch, strategy=strategy, devices=2)
    )
    # Each draws its share; what comes of both is known to both.
    assert first["drawn"] == [0, 2] * 2 and second["drawn"] == [1] * 2
    assert first["history"] == second["history"] and list(first["history"]) == [2, 4]
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    for name, values in one.items():
        assert len(values) == 2
        assert two[name] == pytest.approx(values, rel=1e-3), name
    pictures = [Image.open(tmp_path / folder / "samples_progress.png") for folder in ("one", "two")]
    assert pictures[0].size == pictures[1].size
