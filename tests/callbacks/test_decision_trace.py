"""What is logged and recorded of a choice while it is learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from tinyfusion.backbones.dit import DiT
from tinyfusion.callbacks.decision_trace import DecisionTrace
from tinyfusion.data.digits import Digits
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.pipeline.fit import fit
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.scheme import parse_scheme
from tinyfusion.seeding import StepNoise
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.schedules import LearningRate, Linear
from tinyfusion.training.settings import TrainerSettings, TrainingSettings

STEPS = 6


class States(Callback):
    """The state of the choice after every step."""

    def __init__(self) -> None:
        self.after: dict[int, Any] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: MaskLearning, *_: Any) -> None:
        self.after[trainer.global_step] = pl_module.decision_state()


@pytest.fixture
def learn(tmp_path: Path) -> Callable[..., MaskLearning]:
    """``learn(*callbacks)``: learn two 1:2 groups and one of 4:8 in the temporary folder."""

    def run(*callbacks: Callback, **trainer: Any) -> MaskLearning:
        torch.manual_seed(0)
        net = DiT(8, 4, 1, hidden_size=8, depth=12, num_heads=2, num_classes=10, gate_bias_init=0.5)
        torch.nn.init.normal_(net.final_layer.linear.weight)
        net.requires_grad_(False)
        module = MaskLearning(
            net,
            PatternGates(parse_scheme([[1, 2], [1, 2], [4, 8]], 12)),
            gate_rate_factor=10.0,
            temperature=Linear(4.0, 0.1),
            scale=Linear(50.0, 100.0),
            gate_ema_decay=0.5,
            process=GaussianDiffusion(),
            noise=StepNoise(0, "mask_learning"),
            total_steps=STEPS,
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
            learning_rate=LearningRate(1e-3, 1e-3),
            clip_norm=1.0,
            label_drop=0.1,
        )
        fit(
            module,
            Digits(),
            TrainingSettings(STEPS, 8),
            TrainerSettings("cpu", log_every=3, progress=False, **trainer),
            tmp_path,
            "mask_learning",
            0,
            [CSVLogger(tmp_path, name="log", flush_logs_every_n_steps=1)],
            callbacks,
        )
        return module

    return run


def test_choice_is_logged_at_the_steps_of_the_logger(learn, tmp_path, monkeypatch) -> None:
    calls: list[int] = []
    state_of = MaskLearning.decision_state

    def counted(module: MaskLearning) -> Any:
        calls.append(module.global_step)
        return state_of(module)

    monkeypatch.setattr(MaskLearning, "decision_state", counted)
    module = learn()
    assert calls == [3, 6], "reading the choice at every step would wait for the device"
    rows = np.genfromtxt(
        tmp_path / "log/version_0/metrics.csv", delimiter=",", names=True, deletechars=""
    )
    names = {name.removeprefix("gates/") for name in rows.dtype.names if "gates/" in name}
    assert names == {"temperature", "scale", "margin", "margin_live", "kept_alike", "settled"}
    last, state = rows[-1], state_of(module)
    assert last["gates/scale"] == pytest.approx(100.0)
    assert last["gates/margin"] == pytest.approx(state.averaged.margin, abs=1e-6)
    assert last["gates/margin_live"] == pytest.approx(state.live.margin, abs=1e-6)
    assert last["gates/kept_alike"] == len(set(state.averaged.kept) & set(state.live.kept))


def test_records_are_the_states_of_their_steps(learn, tmp_path) -> None:
    states = States()
    learn(states, DecisionTrace(4))
    records = json.loads((tmp_path / "decision_trace.json").read_text())
    assert [record["step"] for record in records] == [4, 6]
    for record in records:
        state, live = states.after[record["step"]]
        assert record["kept"] == list(state.kept)
        assert record["kept_live"] == list(live.kept)
        assert record["inclusion"] == list(state.inclusion)
        assert record["margin"] == state.margin
        small, _, large = record["probabilities"]
        assert small == [[0, state.groups[0][0]], [1, state.groups[0][1]]]
        assert len(state.groups[2]) == comb(8, 4) and len(large) == 5
        assert [p for _, p in large] == sorted(state.groups[2], reverse=True)[:5]
        assert all(state.groups[2][pattern] == p for pattern, p in large)
    assert (tmp_path / "decision.png").is_file()


def test_records_go_on_after_a_resumption(learn, tmp_path) -> None:
    class Killed(Exception):
        pass

    class KillAt(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                raise Killed

    with pytest.raises(Killed):
        learn(DecisionTrace(1), KillAt(), resume_every=4)
    assert not (tmp_path / "decision_trace.json").exists()
    states = States()
    learn(DecisionTrace(1), states, resume_every=4)
    records = json.loads((tmp_path / "decision_trace.json").read_text())
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["kept"] == list(states.after[6].averaged.kept)
