"""An interrupted run ends like one that never was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tinyfusion.gating.deltas import Lora
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.scheme import parse_scheme
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import LearningRate, Linear

STEPS = 6
Build = Callable[[], DenoiserTraining]


@pytest.fixture
def masks(make_net, shared) -> Build:
    def build() -> MaskLearning:
        net = make_net()
        Lora(2, 4.0, dropout=0.2).attach(net)
        gates = PatternGates(parse_scheme("1:2", 4))
        schedules = (Linear(4.0, 0.1), Linear(10.0, 100.0))
        return MaskLearning(net, gates, 10.0, *schedules, 0.5, **shared(STEPS))

    return build


@pytest.fixture
def recovery(make_net, shared) -> Build:
    def build() -> Recovery:
        objective = Objective(0.1, 0.9, 0.01, 0.0, "separate", variance_kl=True)
        rate = LearningRate(1e-3, 1e-4, warm_up=2)
        teacher = FrozenTeacher(make_net(4))
        arguments = shared(STEPS, learning_rate=rate)
        return Recovery(make_net(2), teacher, objective, [(0, 1), (1, 3)], 0.99, **arguments)

    return build


def state_of(module: DenoiserTraining) -> dict[str, Any]:
    state = {name: value.clone() for name, value in module.state_dict().items()}
    for name, (ema, _) in module.averages.items():
        state |= {f"{name} average of {key}": value for key, value in ema.shadow.items()}
        state[f"{name} updates"] = torch.tensor(ema.num_updates)
    optimizer = module.trainer.optimizers[0].state_dict()
    for index, values in optimizer["state"].items():
        state |= {f"{index} {key}": value.clone() for key, value in values.items()}
    state["rates"] = torch.tensor([group["lr"] for group in optimizer["param_groups"]])
    return state


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["masks", "recovery"])
def test_resumed_run_equals_an_uninterrupted_one(
    request, run, tmp_path, kill_at, kind: str, accumulate: int
) -> None:
    build: Build = request.getfixturevalue(kind)
    whole, first, second = build(), build(), build()
    options = {"accumulate": accumulate, "resume_every": 2}
    run(whole, folder=tmp_path / "whole", **options)
    cut = tmp_path / "cut"
    with pytest.raises(RuntimeError, match="killed"):
        # Step 2 is saved, step 3 is lost and done again.
        run(first, folder=cut, callbacks=[kill_at(3)], **options)
    assert (cut / "resume.ckpt").is_file()
    run(second, folder=cut, **options)
    expected, found = state_of(whole), state_of(second)
    assert expected.keys() == found.keys()
    different = [key for key in expected if not torch.equal(expected[key], found[key])]
    assert not different
    if isinstance(second, MaskLearning):
        assert second.gated.gates.temperature == whole.gated.gates.temperature
        assert second.decision_state() == whole.decision_state()


def test_resume_checkpoint_has_the_average_of_its_step(recovery: Build, run, tmp_path) -> None:
    module = recovery()
    run(module, resume_every=STEPS)
    stored = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    average = stored["tinyfusion"]["averages"]["student"]
    assert average["num_updates"] == STEPS
    assert all(torch.equal(v, module.ema.shadow[k]) for k, v in average["shadow"].items())


def test_a_finished_run_can_be_resumed_for_its_decision(masks: Build, run) -> None:
    first, again = masks(), masks()
    run(first, resume_every=STEPS)
    run(again, resume_every=STEPS)
    assert again.gated.gates.scale == pytest.approx(100.0)
    assert again.decision_state() == first.decision_state()


def test_mask_learning_checkpoint_holds_adapters_and_gates_alone(masks, run, tmp_path) -> None:
    run(masks(), resume_every=STEPS)
    stored = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    keys = set(stored["state_dict"])
    gates = {"gated.gates.groups.0.logits_C", "gated.gates.groups.1.logits_C"}
    assert gates < keys
    assert all(".lora_" in key for key in keys - gates)
    assert set(stored["tinyfusion"]["averages"]) == {"gates"}


def test_recovery_checkpoint_holds_no_teacher(recovery: Build, run, tmp_path) -> None:
    module = recovery()
    assert not any("teacher" in key for key in module.state_dict())
    run(module, resume_every=STEPS)
    stored = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    trained = {f"student.{n}" for n, p in module.student.named_parameters() if p.requires_grad}
    assert set(stored["state_dict"]) == trained
    assert "student.pos_embed" not in trained
    # Weights, average and Adam's two moments of the student, nothing of the teacher.
    numbers = sum(p.numel() for p in module.student.parameters() if p.requires_grad)
    assert (tmp_path / "resume.ckpt").stat().st_size < 4.5 * 4 * numbers + 100_000
