"""Whole short trainings of the official code, with its draws, by our modules and optimisers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from safetensors import safe_open
from torch import Tensor

from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.source import ImageSource
from tinyfusion.gating.deltas import Full, Lora
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.pipeline.fit import fit
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.scheme import parse_scheme
from tinyfusion.seeding import Rows, StepNoise
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import LearningRate, Linear
from tinyfusion.training.settings import TrainerSettings, TrainingSettings

LABEL_DROP = 0.1


@dataclass(frozen=True)
class RecordedNoise(StepNoise):
    """The draws of a recorded training in place of those of a seed."""

    recorded: dict[str, Tensor]
    num_times: int

    def uniform(self, purpose: str, rows: Rows, *shape: int) -> Tensor:
        """Numbers that lead to the recorded times, and to the recorded drops of labels."""
        if purpose == "times":
            drawn = (self.recorded["t"][rows.step].double() + 0.5) / self.num_times
        else:
            assert purpose == "label_drop"
            drawn = 1.0 - self.recorded["drop"][rows.step].double()
        return self._rows(drawn, rows, shape)

    def normal(self, purpose: str, rows: Rows, *shape: int) -> Tensor:
        """The recorded noise."""
        assert purpose == "noise"
        return self._rows(self.recorded["noise"][rows.step], rows, shape)

    def gumbel(self, purpose: str, rows: Rows, *shape: int) -> Tensor:
        """The recorded Gumbel noise of all groups side by side."""
        return self._rows(self.recorded["gumbel"][rows.step], rows, shape)

    @staticmethod
    def _rows(drawn: Tensor, rows: Rows, shape: tuple[int, ...]) -> Tensor:
        drawn = drawn[rows.first : rows.first + rows.count]
        assert drawn.shape == (rows.count, *shape)
        return drawn


class RecordedImages(ImageSource):
    """The recorded batch of every step, whatever images are asked for."""

    def __init__(self, data: dict[str, Tensor], net: DiT) -> None:
        self.num_classes = net.config()["num_classes"]
        self.channels, self.size = data["x"].shape[2:4]
        self._data = data

    def __len__(self) -> int:
        return len(self._data["x"][0])

    def fetch(self, indices: Tensor, augment: object, rows: Rows) -> tuple[Tensor, ClassLabels]:
        """Clean data and labels of a step."""
        held = slice(rows.first, rows.first + rows.count)
        images, labels = (self._data[key][rows.step][held] for key in ("x", "y"))
        return images, ClassLabels(labels)

    def held_out(self) -> tuple[Tensor, ClassLabels]:
        """Not asked for."""
        raise NotImplementedError

    def reference(self) -> Tensor:
        """Not asked for."""
        raise NotImplementedError


class Recorder(DummyLogger):
    """Keeps what is logged, one value a step."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[float]] = defaultdict(list)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the values of a step."""
        for name, value in metrics.items():
            self.values[name].append(value)


class Watcher(Callback):
    """Keeps what is not logged: rates and gates of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.gates: list[Tensor] = []
        self.averaged: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Note the base rate."""
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Note the gates after the step."""
        if isinstance(module, MaskLearning):
            logits = [group.logits_C.detach() for group in module.gated.gates.groups]
            self.gates.append(torch.cat(logits))
            shadow = module.gate_ema.shadow
            averaged = [shadow[f"groups.{i}.logits_C"] for i in range(len(logits))]
            self.averaged.append(torch.cat(averaged))


@dataclass
class Trajectory:
    """A recorded training: its tensors and its configuration."""

    data: dict[str, Tensor]
    config: dict[str, Any]
    folder: Path

    def net(self, prefix: str, config: str) -> DiT:
        """A network with recorded start weights."""
        net = DiT(**self.config[config])
        weights = self.part(prefix)
        net.load_state_dict(weights)
        return net

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.data.items() if k.startswith(prefix)}

    def shared(self, end: float) -> dict[str, Any]:
        """Arguments of `DenoiserTraining`; the optimiser is that of the published recipe."""
        rate, process = self.config["learning_rate"], GaussianDiffusion()
        return {
            "process": process,
            "noise": RecordedNoise(0, "test", self.data, process.num_steps),
            "total_steps": self.config["steps"],
            "optimizer": lambda groups: torch.optim.AdamW(groups, lr=rate, weight_decay=0.0),
            "learning_rate": LearningRate(rate, end),
            "clip_norm": self.config["clip_norm"],
            "label_drop": LABEL_DROP,
        }

    def train(self, module: DenoiserTraining, net: DiT) -> tuple[dict[str, list[float]], Watcher]:
        """Train as a phase does; what was logged and watched."""
        torch.set_num_threads(1)
        settings = TrainingSettings(self.config["steps"], self.config["batch"])
        trainer = TrainerSettings("cpu", progress=False, log_every=1)
        images, recorder, watcher = RecordedImages(self.data, net), Recorder(), Watcher()
        fit(module, images, settings, trainer, self.folder, "test", 0, [recorder], [watcher])
        assert module.skipped_steps == 0
        return recorder.values, watcher


@pytest.fixture
def trajectory(golden, golden_folder: Path, tmp_path: Path) -> Callable[[str], Trajectory]:
    """Loader of a recorded training."""

    def load(name: str) -> Trajectory:
        with safe_open(golden_folder / f"trajectory_{name}.safetensors", "pt") as file:
            config = json.loads(file.metadata()["config"])
        return Trajectory(golden(f"trajectory_{name}"), config, tmp_path)

    return load


def same(ours: list[float] | list[Tensor], theirs: Tensor, rtol: float, atol: float = 0.0) -> None:
    """Compare one row per step."""
    values = torch.stack([torch.as_tensor(value) for value in ours]).to(theirs.dtype)
    torch.testing.assert_close(values, theirs, rtol=rtol, atol=atol)


def same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Compare weights at the end: the optimiser amplifies rounding where gradients vanish."""
    assert theirs
    for name, value in theirs.items():
        tolerance = 2e-2 * float(value.abs().max())
        torch.testing.assert_close(ours[name].detach(), value, rtol=0.0, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_mask_learning_follows_the_official_training(trajectory, kind: str) -> None:
    official = trajectory(f"mask_{kind}")
    config, data = official.config, official.data
    net = official.net("sd.", "model_config")
    delta = Full() if kind == "full" else Lora(config["lora_rank"], config["lora_alpha"])
    delta.attach(net)
    starts = official.part("lora_a.")
    adapted = {name for name, module in net.named_modules() if hasattr(module, "lora_A")}
    assert adapted == set(starts)
    with torch.no_grad():
        for name, value in starts.items():
            net.get_submodule(name).lora_A["default"].weight.copy_(value)
    scheme = parse_scheme(config["groups"], config["model_config"]["depth"])
    module = MaskLearning(
        net,
        PatternGates(scheme),
        config["gate_factor"],
        Linear(*config["temperature"]),
        Linear(*config["scale"]),
        config["gate_ema_decay"],
        **official.shared(end=config["learning_rate"]),
    )
    logged, watched = official.train(module, net)

    same(logged["train/loss"], data["loss"], 1e-5)
    same(logged["train/grad_norm"], data["grad_norm"], 1e-5)
    same(logged["gates/temperature"], data["tau"], 0.0, 1e-6)
    same(watched.gates, data["gates"], 0.0, 1e-5)
    same(watched.averaged, data["gates_ema"], 0.0, 1e-5)
    assert list(module.decision_state().averaged.kept) == data["kept"].tolist()
    ours = {
        name.replace(".lora_A.default.weight", ".lora_a")
        .replace(".lora_B.default.weight", ".lora_b")
        .replace(".base_layer", ""): value
        for name, value in module.trained_net.state_dict().items()
    }
    same_weights(ours, official.part("final."))


def test_masked_distillation_follows_the_official_training(trajectory) -> None:
    official = trajectory("kd")
    config, data = official.config, official.data
    student = official.net("s.sd.", "student_config")
    teacher = official.net("t.sd.", "teacher_config")
    start, end = config["beta"]
    objective = Objective(
        1 - config["alpha_kd"],
        config["alpha_kd"],
        start,
        end,
        config["mask"],
        config["num_sigmas"],
        config["variance_kl"],
    )
    module = Recovery(
        student,
        FrozenTeacher(teacher),
        objective,
        [tuple(pair) for pair in config["pairs"]],
        config["ema_decay"],
        ema_warm_up=False,
        **official.shared(end=config["learning_rate_end"]),
    )
    logged, watched = official.train(module, teacher)

    same(logged["train/loss"], data["loss"], 1e-5)
    same(logged["train/kd"], data["kd_loss"], 1e-5)
    same(logged["train/features"], data["feat_loss"], 1e-5)
    same(logged["train/task"], data["gt"], 1e-5)
    same(logged["train/grad_norm"], data["grad_norm"], 1e-5)
    same(watched.rates, data["lr"], 0.0, 1e-6)
    names = ("loss", "task", "kd", "features")
    total, task, kd, features = (torch.tensor(logged[f"train/{name}"]) for name in names)
    weight = (total - objective.task_weight * task - objective.output_weight * kd) / features
    same(list(weight), data["beta"], 0.0, 1e-5)  # as exact as float32 losses tell
    same_weights(student.state_dict(), official.part("final."))
    same_weights(module.ema.shadow, official.part("ema."))
