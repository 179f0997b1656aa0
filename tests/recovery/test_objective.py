"""Weights, schedule and checks of the recovery objective; the teacher's isolation."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher


def tiny(**changes: object) -> DiT:
    sizes = {"input_size": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    return DiT(**(sizes | changes))


def run(objective: Objective, share: float = 0.0) -> dict[str, torch.Tensor]:
    process = GaussianDiffusion()
    torch.manual_seed(1)
    x = torch.randn(3, 4, 4, 4)
    batch = process.add_noise(x, torch.tensor([5, 400, 900]), torch.randn_like(x))
    out, teacher_out = torch.randn(2, 3, 8, 4, 4)
    pairs = [(torch.randn(3, 4, 16), torch.randn(3, 4, 16))] * objective.uses_features
    distances = [objective.distance(*pair) for pair in pairs]
    return objective(process, batch, out, teacher_out, distances, share)


def test_total_is_the_weighted_sum() -> None:
    terms = run(Objective(0.1, 0.9, 0.5, 0.5))
    expected = 0.1 * terms["task"] + 0.9 * terms["kd"] + 0.5 * terms["features"]
    torch.testing.assert_close(terms["total"], expected)
    assert torch.equal(terms["task"], terms["mse"] + terms["vb"])
    assert torch.equal(terms["kd"], terms["kd_mse"])


@pytest.mark.parametrize(("share", "weight"), [(0.0, 0.02), (0.5, 0.015), (1.0, 0.01)])
def test_feature_weight_is_linear_in_the_run(share: float, weight: float) -> None:
    terms = run(Objective(1.0, 0.0, 0.02, 0.01), share)
    torch.testing.assert_close(terms["total"], terms["task"] + weight * terms["features"])


def test_finetuning_needs_no_teacher() -> None:
    objective = Objective()
    assert not objective.uses_teacher
    objective.check(tiny(), None, GaussianDiffusion())
    assert set(run(objective)) == {"mse", "vb", "task", "total"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task_weight": -1.0}, r"^recovery\.task_weight=-1\.0 must not be negative"),
        ({"feature_weight_end": -1.0}, r"^recovery\.feature_weight_end"),
        ({"task_weight": 0.0}, "^recovery: .*both 0"),
        ({"feature_mask": "all"}, r"^recovery\.feature_mask='all' is not known; valid: none"),
        ({"num_sigmas": 0.0}, r"^recovery\.num_sigmas=0.0 must be positive"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective(**arguments)


def test_networks_that_cannot_be_compared_are_refused() -> None:
    kd, masked = Objective(0.1, 0.9), Objective(0.1, 0.9, 0.01)
    with pytest.raises(InputError, match="teacher=none"):
        kd.check(tiny(), None, GaussianDiffusion())
    wide = tiny(hidden_size=32)
    kd.check(tiny(), wide, GaussianDiffusion())
    with pytest.raises(InputError, match=r"hidden_size: 16 and 32.*use recovery=kd"):
        masked.check(tiny(), wide, GaussianDiffusion())
    with pytest.raises(InputError, match="learn_sigma: True and False"):
        kd.check(tiny(), tiny(learn_sigma=False), GaussianDiffusion())
    masked.check(tiny(), tiny(depth=4), GaussianDiffusion())
    mar = partial(MAR, 4, 8, 1, 1, 2, head_depth=1, head_width=8)
    with pytest.raises(InputError, match=r"buffer_size: 4 and 2.*use recovery=kd"):
        masked.check(mar(buffer_size=4), mar(buffer_size=2), MaskedDiffusion())
    kd.check(mar(buffer_size=4), mar(buffer_size=2), MaskedDiffusion())


def test_variances_that_nothing_learns_are_not_compared() -> None:
    objective = Objective(0.1, 0.9, variance_kl=True)
    objective.check(tiny(), tiny(), GaussianDiffusion())
    with pytest.raises(InputError, match=r"^recovery\.variance_kl=true .* process=Interpolant"):
        objective.check(tiny(), tiny(), Interpolant())


def test_teacher_is_invisible_frozen_and_never_copied() -> None:
    teacher = FrozenTeacher(tiny().train())
    assert not teacher.net.training
    assert not any(p.requires_grad for p in teacher.net.parameters())
    owner = nn.Module()
    owner.teacher = teacher
    assert owner.state_dict() == {}
    assert list(owner.parameters()) == []
    assert copy.deepcopy(teacher) is teacher
    x = torch.randn(2, 4, 4, 4, requires_grad=True)
    labels = ClassLabels(torch.tensor([0, 3]))
    out, states = teacher((x, torch.tensor([1, 2])), labels, [1])
    assert out is not None and not out.requires_grad
    assert len(states) == 1 and not states[0].requires_grad


def test_teacher_runs_no_deeper_than_is_asked_for() -> None:
    teacher = FrozenTeacher(tiny(depth=5))
    nn.init.normal_(teacher.net.final_layer.linear.weight)
    ran: list[int] = []
    for index, block in enumerate(teacher.net.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    seen = (torch.randn(2, 4, 4, 4), torch.tensor([1, 2])), ClassLabels(torch.tensor([0, 3]))
    out, states = teacher(*seen, [3, 1, 3])
    assert out is not None and ran == [0, 1, 2, 3, 4]
    ran.clear()
    none, alone = teacher(*seen, [3, 1, 3], predicts=False)
    assert none is None and ran == [0, 1, 2, 3]
    assert len(alone) == 3 and all(map(torch.equal, alone, states))


def test_teacher_in_lower_precision_by_its_own_choice_alone() -> None:
    teacher = FrozenTeacher(tiny())
    nn.init.normal_(teacher.net.final_layer.linear.weight)
    seen = (torch.randn(2, 4, 4, 4), torch.tensor([1, 2])), ClassLabels(torch.tensor([0, 3]))
    exact, _ = teacher(*seen, [])
    teacher.dtype = torch.bfloat16
    rounded, _ = teacher(*seen, [])
    assert exact is not None and rounded is not None and rounded.dtype == torch.bfloat16
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        teacher.dtype = None
        assert torch.equal(rounded, teacher(*seen, [])[0])
        teacher.dtype = torch.float32
        assert torch.equal(exact, teacher(*seen, [])[0])
