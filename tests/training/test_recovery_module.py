"""What the recovery phase feeds to student and teacher."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from tinyfusion.backbones.dit import DiT
from tinyfusion.errors import InputError
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.settings import TrainerSettings


def spy(net: DiT) -> list[tuple[Tensor, Tensor, Tensor]]:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    net.register_forward_pre_hook(
        lambda _, args: seen.append(tuple(value.detach().clone() for value in args[:3]))
    )
    return seen


def test_teacher_sees_the_students_noise_times_and_dropped_labels(make_net, shared, run) -> None:
    student, teacher = make_net(2), make_net(4)
    by_student, by_teacher = spy(student), spy(teacher)
    objective = Objective(0.1, 0.9)
    arguments = shared(3, label_drop=0.5)
    run(Recovery(student, FrozenTeacher(teacher), objective, [], 0.9, **arguments), batch_size=16)
    assert len(by_student) == len(by_teacher) == 3
    for ours, theirs in zip(by_student, by_teacher, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    labels = torch.cat([y for _, _, y in by_student])
    dropped = int((labels == student.null_label).sum())
    assert 12 <= dropped <= 36, "half of 48 labels"
    assert set(labels.tolist()) == {0, 1, 2}
    steps = [tuple(y.tolist()) for _, _, y in by_student]
    assert len(set(steps)) == 3, "other drops in every step"


def test_teacher_stays_as_it_was(make_net, shared, run) -> None:
    teacher = make_net(4)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective = Objective(0.1, 0.9, 0.01, 0.0, "separate")
    module = Recovery(
        make_net(2), FrozenTeacher(teacher), objective, [(0, 1), (1, 3)], 0.9, **shared(2)
    )
    assert {id(p) for p in module.parameters()}.isdisjoint(id(p) for p in teacher.parameters())
    run(module)
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_no_labels_are_dropped_at_zero(make_net, shared, run) -> None:
    student = make_net(1)
    seen = spy(student)
    run(Recovery(student, None, Objective(), [], 0.9, **shared(2, label_drop=0.0)))
    assert all(int(y.max()) < student.null_label for _, _, y in seen)


def test_dropping_labels_needs_a_null_class(shared, run) -> None:
    net = DiT(4, 2, 1, 16, 1, 2, num_classes=2, class_dropout_prob=0.0)
    with pytest.raises(InputError, match="no null class"):
        run(Recovery(net, None, Objective(), [], 0.9, **shared(1)))
    run(Recovery(net, None, Objective(), [], 0.9, **shared(1, label_drop=0.0)))


class Shares(Objective):
    """Notes the progress that it is given."""

    def __call__(self, *args: object) -> dict[str, Tensor]:
        self.seen = [*getattr(self, "seen", []), args[5]]
        return super().__call__(*args)


@pytest.mark.parametrize(("steps", "shares"), [(1, [0.0]), (5, [0.0, 0.25, 0.5, 0.75, 1.0])])
def test_feature_weight_moves_per_step(make_net, shared, run, steps: int, shares: list) -> None:
    objective = Shares(1.0, 0.0, 0.01, 0.0, "separate")
    teacher = FrozenTeacher(make_net(4))
    module = Recovery(make_net(2), teacher, objective, [(0, 1), (1, 3)], 0.9, **shared(steps))
    run(module)
    assert objective.seen == pytest.approx(shares)
    assert all(p.isfinite().all() for p in module.parameters())


def test_recovery_trains_all_weights_but_the_fixed_table(make_net, shared, run) -> None:
    module = Recovery(make_net(2), None, Objective(), [], 0.9, **shared(3))
    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    run(module)
    same = {n for n, v in module.student.state_dict().items() if torch.equal(v, before[n])}
    assert same == {"pos_embed"}
    with module.ema.averaged(module.student):
        averaged = {name: value.clone() for name, value in module.student.state_dict().items()}
    assert not torch.equal(
        averaged["final_layer.linear.weight"], module.student.final_layer.linear.weight
    )


def test_what_a_rounded_teacher_changes_is_said_once(make_net, shared, run, tmp_path, caplog):
    caplog.set_level("INFO", "tinyfusion")
    weights = {}
    for precision in (None, "32-true", "bf16-mixed"):
        objective = Objective(0.1, 0.9, 0.01, 0.0, "separate")
        module = Recovery(
            make_net(2), FrozenTeacher(make_net(4)), objective, [(0, 1), (1, 3)], 0.9, **shared(3)
        )
        caplog.clear()
        run(module, teacher_precision=precision, folder=tmp_path / str(precision))
        weights[precision] = module.student.blocks[0].mlp.fc1.weight.detach().clone()
        said = [line for line in caplog.messages if "changes the first losses" in line]
        assert len(said) == (precision == "bf16-mixed")
    assert re.match(
        r"test: the teacher in bfloat16 instead of float32 .*total [\d.]+ by [+-]\d\.\de-\d+",
        said[0],
    )
    assert re.search(r"\bmse [\d.]+ by \+0\.0e\+00", said[0])
    assert torch.equal(weights[None], weights["32-true"])
    moved = float((weights["bf16-mixed"] - weights[None]).abs().max())
    assert 0 < moved < 3e-3  # three steps at a rate of 1e-3


def test_an_unknown_precision_of_the_teacher_is_refused() -> None:
    with pytest.raises(InputError, match=r"trainer\.teacher_precision=8 is not known; valid: 32-"):
        TrainerSettings(teacher_precision="8")
