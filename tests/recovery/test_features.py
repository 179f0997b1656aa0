"""Hidden-state distance without massive activations."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.errors import InputError
from tinyfusion.recovery.features import feature_distance, ordinary


@pytest.fixture
def states() -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-variance teacher states and a student with ten percent noise on top."""
    teacher = torch.randn(2, 64, 256)
    return teacher + 0.1 * torch.randn_like(teacher), teacher


def means(student: torch.Tensor, teacher: torch.Tensor) -> dict[str, float]:
    return {
        mask: float(feature_distance(student, teacher, mask).mean())
        for mask in ("none", "separate", "intersection")
    }


def test_one_outlier_of_a_thousand_sigmas(states: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teacher = states
    clean = means(student, teacher)
    # About 280 entries lie astride the limits, so `separate` varies by 6 % between draws.
    assert clean["none"] == pytest.approx(0.0099, rel=0.05)
    assert clean["separate"] == pytest.approx(0.0475, rel=0.2)
    assert clean["intersection"] == pytest.approx(0.0098, rel=0.05)
    student = student.clone()
    student[0, 0, 0] = 1000.0
    hit = means(student, teacher)
    assert hit["none"] == pytest.approx(30.5, rel=0.01)
    assert hit["separate"] == pytest.approx(0.167, rel=0.2)
    assert hit["intersection"] == pytest.approx(0.0099, rel=0.05)


def test_an_entry_massive_on_one_side_only() -> None:
    teacher = torch.randn(1, 16, 32)
    student = teacher.clone()
    student[0, 0, 0] = 50.0
    # In the reference code it is compared with zero, in the paper's text it is left out. The
    # student's outlier also widens its own limits, so some entries are cut on one side only.
    student_ok, teacher_ok = ordinary(student, 2.0), ordinary(teacher, 2.0)
    alone = student_ok ^ teacher_ok
    assert alone.any()
    separate = feature_distance(student, teacher, "separate")
    expected = (torch.where(alone, student_ok * student + teacher_ok * teacher, 0.0) ** 2).mean()
    torch.testing.assert_close(separate[0], expected)
    assert feature_distance(student, teacher, "intersection")[0] == 0


def test_limits_are_taken_per_sample_with_unbiased_deviation() -> None:
    quiet, loud = torch.randn(1, 8, 16), 100 * torch.randn(1, 8, 16)
    together = ordinary(torch.cat([quiet, loud]), 1.0)
    assert torch.equal(together[:1], ordinary(quiet, 1.0))
    # Two entries: deviation sqrt(2) with n - 1, and 1 with n.
    assert ordinary(torch.tensor([[[-1.0, 1.0]]]), 0.9).all()


def test_masks_pass_no_gradient_where_the_student_is_massive() -> None:
    student = torch.randn(1, 8, 16)
    student[0, 0, 0] = 40.0
    student.requires_grad_()
    feature_distance(student, torch.randn(1, 8, 16), "separate").sum().backward()
    assert torch.equal(student.grad != 0, ordinary(student.detach(), 2.0))


def test_nothing_ordinary_is_no_division_by_zero() -> None:
    student, teacher = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    value = feature_distance(student, teacher, "intersection", num_sigmas=1e-9)
    assert torch.equal(value, torch.zeros(2))


def test_constant_states_are_no_division_by_zero() -> None:
    constant = torch.ones(1, 4, 8)
    for mask in ("separate", "intersection"):
        assert feature_distance(constant, constant, mask).isfinite().all()


def test_wrong_mask_and_threshold() -> None:
    x = torch.zeros(1, 2, 2)
    with pytest.raises(InputError, match="'both' is not known; valid: none, separate"):
        feature_distance(x, x, "both")
    with pytest.raises(InputError, match=r"num_sigmas=0\.0 must be positive"):
        feature_distance(x, x, "separate", 0.0)
