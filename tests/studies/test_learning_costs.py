"""The study of cheaper mask learning."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.dit import DiT
from tinyfusion.budget import Budget
from tinyfusion.data.digits import Digits
from tinyfusion.files import read_json
from tinyfusion.gating.deltas import Frozen
from tinyfusion.gating.draws import GumbelTopK
from tinyfusion.gating.unit_gates import UnitGates
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.seeding import StepNoise
from tinyfusion.studies.learning_costs import TrainingCost, gate_gradient_noise
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.schedules import LearningRate, Linear


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
