"""Tiny nets and images, and the real trainer around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from tinyfusion.backbones.dit import DiT
from tinyfusion.budget import Budget
from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.source import ImageSource
from tinyfusion.gating.draws import GumbelTopK
from tinyfusion.gating.unit_gates import UnitGates
from tinyfusion.pipeline.fit import fit
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.seeding import StepNoise
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.schedules import LearningRate, Linear
from tinyfusion.training.settings import TrainerSettings, TrainingSettings


class Checkers(ImageSource):
    """Noisy two-by-two checkerboards in both colourings; the label says which."""

    num_classes, channels, size = 2, 1, 4

    def __len__(self) -> int:
        return 64

    def fetch(self, indices: Tensor, augment: object, rows: object) -> tuple[Tensor, ClassLabels]:
        labels = indices % 2
        place = torch.arange(4) // 2
        board = ((place[:, None] + place[None]) % 2) * 2.0 - 1.0
        jitter = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(9))
        images = board * (2.0 * labels - 1.0)[:, None, None, None] + 0.1 * jitter[indices]
        return images, ClassLabels(labels)

    def held_out(self) -> tuple[Tensor, ClassLabels]:
        return self.fetch(torch.arange(16), None, None)

    def reference(self) -> Tensor:
        return torch.zeros(64, 1, 4, 4, dtype=torch.uint8)


@pytest.fixture
def source() -> Checkers:
    return Checkers()


@pytest.fixture
def make_net() -> Callable[..., DiT]:
    """``make_net(depth)``: the same weights every time, every block in use."""

    def build(depth: int = 4) -> DiT:
        torch.manual_seed(8)
        net = DiT(4, 2, 1, 16, depth, 2, 2.0, num_classes=2, gate_bias_init=0.5)
        torch.nn.init.normal_(net.final_layer.linear.weight, std=0.1)
        return net

    return build


@pytest.fixture
def shared() -> Callable[..., dict[str, Any]]:
    """``shared(total_steps, ...)``: arguments of `DenoiserTraining`."""

    def build(total_steps: int, rate: float = 1e-3, **changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "process": GaussianDiffusion(),
            "noise": StepNoise(0, "test"),
            "total_steps": total_steps,
            "optimizer": partial(torch.optim.AdamW, lr=rate, weight_decay=0.0, fused=True),
            "learning_rate": LearningRate(rate, rate),
            "clip_norm": 1.0,
            "label_drop": 0.1,
        }
        return values | changes

    return build


@pytest.fixture
def make_learning(make_net, shared) -> Callable[..., MaskLearning]:
    """``make_learning(delta, ...)``: learning of two of four blocks, that has not begun."""

    # Adam would blow up the rounding of gradients that are zero by symmetry.
    def sgd(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.1, momentum=0.5)

    def build(
        delta: Any, dense: bool = False, steps: int = 3, rate: float = 0.1, **options: Any
    ) -> MaskLearning:
        net = make_net(4)
        torch.manual_seed(5)
        delta.attach(net)
        gates = options.pop("gates", None) or UnitGates(Budget.of(net.units(), 2), GumbelTopK())
        schedules = (Linear(4.0, 0.1), Linear(10.0, 10.0))
        arguments = shared(steps, rate=rate, optimizer=sgd)
        return MaskLearning(net, gates, 10.0, *schedules, 0.5, dense=dense, **options, **arguments)

    return build


def state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.fixture
def run(tmp_path: Path, source: Checkers) -> Callable[..., None]:
    """``run(module, batch_size=8, accumulate=1, ...)`` trains on the CPU as a phase does."""
    torch.set_num_threads(1)

    def train(
        module: DenoiserTraining,
        batch_size: int = 8,
        accumulate: int = 1,
        resume_every: int = 1000,
        precision: str = "32-true",
        callbacks: Sequence[Callback] = (),
        folder: Path | None = None,
        **trainer: Any,
    ) -> None:
        settings = TrainingSettings(module.total_steps, batch_size)
        settings_of_trainer = TrainerSettings(
            "cpu",
            precision=precision,
            resume_every=resume_every,
            progress=False,
            micro_batch=batch_size // accumulate,
            **trainer,
        )
        folder = tmp_path if folder is None else folder
        fit(module, source, settings, settings_of_trainer, folder, "test", 0, [], callbacks)

    return train


@pytest.fixture
def on_two_ranks(on_ranks) -> Callable[[Callable[[], Any]], list[Any]]:
    """``on_two_ranks(work)``: what ``work`` returns, called in two processes that may train."""
    return lambda work: on_ranks(2, work)


class _KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


@pytest.fixture
def kill_at() -> Callable[[int], Callback]:
    """``kill_at(step)`` stands for the end of the process before that step."""
    return _KillAt
