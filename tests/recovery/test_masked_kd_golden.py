"""Distillation losses and gradients of the official code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tinyfusion.backbones.contract import forward_with_states
from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.processes.gaussian import GaussianDiffusion, NoisyBatch
from tinyfusion.recovery.features import feature_distance, ordinary
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher

PAIRS = [(0, 1), (1, 3)]
ALPHA, BETA = 0.9, 0.01


def build(data: dict[str, Tensor], prefix: str, depth: int) -> DiT:
    net = DiT(8, hidden_size=32, depth=depth, num_heads=4, num_classes=10, class_dropout_prob=0.4)
    net.load_state_dict(
        {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
    )
    return net


def close(ours: Tensor, theirs: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@pytest.fixture
def case(golden):
    """Golden data, student, batch, outputs and aligned states."""
    data = golden("masked_kd")
    student, teacher = build(data, "s.sd.", 2), FrozenTeacher(build(data, "t.sd.", 4))
    process = GaussianDiffusion()
    batch = process.add_noise(data["x_start"], data["t"], data["noise"])
    close(batch.noisy, data["x_t"], 1e-4, 1e-5)
    seen = (batch.noisy, process.network_time(batch.t)), ClassLabels(data["y_used"])
    out, states = forward_with_states(student, *seen, [a for a, _ in PAIRS])
    teacher_out, teacher_states = teacher(*seen, [b for _, b in PAIRS])
    pairs = [(states[a], theirs) for (a, _), theirs in zip(PAIRS, teacher_states, strict=True)]
    return data, student, process, batch, out, teacher_out, pairs


def test_outputs_states_and_masks(case) -> None:
    data, _, _, _, out, teacher_out, pairs = case
    close(out, data["student_out"], 1e-4, 1e-4)
    close(teacher_out, data["teacher_out"], 1e-4, 1e-4)
    for i, (student, teacher) in enumerate(pairs):
        close(student, data[f"feat_student.{i}"], 1e-4, 1e-4)
        close(teacher, data[f"feat_teacher.{i}"], 1e-4, 1e-4)
        for k in (2, 4):
            student_ok, teacher_ok = ordinary(student, k), ordinary(teacher, k)
            assert torch.equal(student_ok, data[f"k{k}.mask_student.{i}"].bool())
            assert torch.equal(teacher_ok, data[f"k{k}.mask_teacher.{i}"].bool())
            assert torch.equal(student_ok.flatten(1).sum(1), data[f"k{k}.kept_student.{i}"])
            assert torch.equal(teacher_ok.flatten(1).sum(1), data[f"k{k}.kept_teacher.{i}"])
            both = (student_ok & teacher_ok).flatten(1).sum(1)
            assert torch.equal(both, data[f"k{k}.kept_joint.{i}"])


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize(
    ("mask", "name"),
    [("separate", "reference"), ("intersection", "joint_mean_kept"), ("none", "unmasked")],
)
def test_feature_distances(case, k: int, mask: str, name: str) -> None:
    data, pairs = case[0], case[-1]
    ours = sum(feature_distance(s, t, mask, k) for s, t in pairs) / len(pairs)
    close(ours, data[f"k{k}.feat_loss_{name}"], 1e-4, 1e-5)


@pytest.mark.parametrize("k", [2, 4])
def test_objective_and_its_gradients(case, k: int) -> None:
    data, student, process, batch, out, teacher_out, pairs = case
    objective = Objective(1 - ALPHA, ALPHA, BETA, 0.0, "separate", k, variance_kl=True)
    distances = [objective.distance(*pair) for pair in pairs]
    terms = objective(process, batch, out, teacher_out, distances, share=0.0)
    names = {"mse": "mse", "vb": "vb", "kd_vb": "vb_kd", "kd": "kd_loss", "task": "gt"}
    names |= {"total": "loss", "features": "feat_loss_reference"}
    for ours, theirs in names.items():
        close(terms[ours], data[f"k{k}.{theirs}"], 1e-4, 1e-5)
    loss = terms["total"].mean()
    close(loss, data[f"k{k}.loss_mean"], 1e-4, 1e-5)
    loss.backward()
    gradients = [key for key in data if key.startswith(f"k{k}.grad.")]
    assert len(gradients) == 8
    for key in gradients:
        close(student.get_parameter(key.removeprefix(f"k{k}.grad.")).grad, data[key], 1e-3, 1e-5)


def test_objective_without_features(case) -> None:
    data, _, process, batch, out, teacher_out, _ = case
    objective = Objective(1 - ALPHA, ALPHA, variance_kl=True)
    terms = objective(process, batch, out, teacher_out, [], share=0.0)
    close(terms["task"], data["nofeat.gt"], 1e-4, 1e-5)
    close(terms["kd"], data["nofeat.kd_loss"], 1e-4, 1e-5)
    close(terms["total"], data["nofeat.loss"], 1e-4, 1e-5)
    assert "features" not in terms


def test_bfloat16_predictions_are_compared_in_float32(case) -> None:
    _, _, process, batch, out, teacher_out, pairs = case
    objective = Objective(1 - ALPHA, ALPHA, BETA, 0.0, "separate", variance_kl=True)
    distances = [objective.distance(*pair) for pair in pairs]
    low, low_teacher = out.bfloat16(), teacher_out.bfloat16()
    terms = objective(process, batch, low, low_teacher, distances, share=0.0)
    exact = objective(process, batch, low.float(), low_teacher.float(), distances, share=0.0)
    assert isinstance(batch, NoisyBatch)
    assert torch.equal(terms["total"], exact["total"])
