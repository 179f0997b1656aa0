"""Hidden states put on one scale, as Laptop-Diff normalises them."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.backbones.contract import forward_with_states, predict
from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.recovery.features import mean_squares, one_scale
from tinyfusion.recovery.objective import Objective


class Once:
    """Two fixed batches."""

    def __init__(self) -> None:
        self.batches = [
            ((torch.randn(n, 4, 4, 4), torch.full((n,), 7)), ClassLabels(torch.arange(n)))
            for n in (2, 3)
        ]

    def predict(self, net, run_block) -> None:
        for batch in self.batches:
            predict(net, *batch, run_block)


def test_mean_squares_are_those_of_the_states() -> None:
    net = DiT(4, 2, 4, hidden_size=16, depth=3, num_heads=2, num_classes=3)
    data = Once()
    found = mean_squares(net, [2, 0, 2], data)
    states = [forward_with_states(net, *batch, [0, 2])[1] for batch in data.batches]
    wanted = [torch.cat([s[i].flatten() for s in states]).square().mean() for i in (2, 0, 2)]
    assert found == pytest.approx([value.item() for value in wanted], rel=1e-5)


def test_weights_are_the_largest_norm_over_each() -> None:
    assert one_scale([2.0, 8.0, 1.0], [1, 3, 5]) == [4.0, 1.0, 8.0]


@pytest.mark.parametrize("norm", [0.0, float("nan"), float("inf")])
def test_what_nothing_can_be_divided_by_is_refused(norm: float) -> None:
    with pytest.raises(InputError, match=r"feature_scale=teacher: .* after block 5 is"):
        one_scale([1.0, norm], [3, 5])


def shares(factor: float) -> list[float]:
    """Shares of three pairs in the feature term, states of the second one scaled."""
    torch.manual_seed(3)
    teacher = [scale * torch.randn(2, 4, 8) for scale in (1.0, 3.0, 0.2)]
    student = [state + 0.1 * scale * torch.randn(2, 4, 8) for state, scale in zip(
        teacher, (1.0, 5.0, 0.4), strict=True
    )]  # fmt: skip
    teacher[1], student[1] = factor * teacher[1], factor * student[1]
    weights = one_scale([float(state.square().mean()) for state in teacher], [0, 1, 2])
    process = GaussianDiffusion()
    clean = torch.randn(2, 4, 4, 4)
    batch = process.add_noise(clean, torch.tensor([5, 400]), torch.randn_like(clean))
    objective = Objective(1.0, 0.0, 1.0, 1.0, feature_scale="teacher")
    out = torch.randn(2, 8, 4, 4)
    distances = list(map(objective.distance, student, teacher))
    whole = objective(process, batch, out, None, distances, 0.0, weights)
    assert torch.allclose(whole["total"], whole["task"] + whole["features"])
    parts = [
        objective(process, batch, out, None, [distance], 0.0, [weight])["features"].mean()
        for distance, weight in zip(distances, weights, strict=True)
    ]
    torch.testing.assert_close(sum(parts), whole["features"].mean())
    return [float(part / whole["features"].mean()) for part in parts]


def test_scaling_one_teacher_feature_leaves_its_share() -> None:
    assert shares(10.0) == pytest.approx(shares(1.0), rel=1e-5)


def test_unknown_scale_and_too_few_samples() -> None:
    with pytest.raises(InputError, match="feature_scale='student' is not known; valid: none, tea"):
        Objective(feature_scale="student")
    with pytest.raises(InputError, match="calibration_samples=0 must be at least 1"):
        Objective(calibration_samples=0)
