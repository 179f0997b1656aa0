"""Scores and samples during training in two processes: the first makes them, none hangs."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path

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
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.seeding import StepNoise
from tinyfusion.training.pretrain import Pretraining
from tinyfusion.training.schedules import LearningRate
from tinyfusion.training.settings import TrainerSettings, TrainingSettings

STEPS = 4


def pretrain(folder: Path, **trainer) -> None:
    """Train on the digits with everything that watches, every second step."""
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
        20, AncestralSampler(2), Guidance(), held_out_repeats=1, speed_samples=0
    )
    callbacks = [EvaluateDuringTraining(2, evaluation), SampleGrid(2, AncestralSampler(2))]
    first = os.environ.get("RANK", "0") == "0"
    logger = CSVLogger(folder, name="log", flush_logs_every_n_steps=1) if first else None
    settings = TrainerSettings("cpu", progress=False, resume_every=2, log_every=2, **trainer)
    fit(module, source, TrainingSettings(STEPS, 8), settings, folder, "p", 0, logger, callbacks)


def as_rank(rank: int, port: int, folder: Path, strategy: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    pretrain(folder, strategy=strategy, devices=2)


def logged(folder: Path) -> dict[str, list[float]]:
    rows = np.genfromtxt(folder / "log/version_0/metrics.csv", delimiter=",", names=True)
    names = ("trainloss", "evaluatefid", "held_outloss", "held_outloss_live")
    return {name: rows[name][~np.isnan(rows[name])].tolist() for name in names}


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_scores_and_samples_are_those_of_one_process(tmp_path: Path, strategy: str) -> None:
    pretrain(tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=as_rank, args=(rank, port, tmp_path / "two", strategy))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    for name, values in one.items():
        assert len(values) == 2
        assert two[name] == pytest.approx(values, rel=1e-3), name
    pictures = [Image.open(tmp_path / folder / "samples_progress.png") for folder in ("one", "two")]
    assert pictures[0].size == pictures[1].size
