"""Interpolants against numbers of the official implementation, and against calculus."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.sit import SiT
from tinyfusion.errors import InputError
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.paths import PATHS

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
OFFICIAL = {"linear": "Linear", "gvp": "GVP", "vp": "VP"}
PAIRS = [(path, prediction) for path in OFFICIAL for prediction in ("velocity", "noise", "score")]
WEIGHTED = [(path, prediction, None) for path, prediction in PAIRS] + [
    (path, prediction, weight)
    for path, prediction in PAIRS
    if prediction != "velocity"
    for weight in ("velocity", "likelihood")
]


@pytest.fixture(scope="module")
def numbers(golden):
    return golden("sit")


@pytest.fixture(scope="module")
def golden_out(numbers):
    """Output of the golden network at the states, times and labels of drift and score."""
    net = SiT(input_size=8, hidden_size=40, depth=4, num_heads=4, num_classes=10)
    net.load_state_dict({k[3:]: v for k, v in numbers.items() if k.startswith("sd.")})
    with torch.no_grad():
        return net.eval()(numbers["train.x0"], numbers["train.t"], numbers["train.y"])


@pytest.mark.parametrize(("path", "prediction", "weight"), WEIGHTED)
def test_losses_match_golden(numbers, path, prediction, weight):
    process = Interpolant(path, prediction, weight)
    batch = process.add_noise(numbers["train.x1"], numbers["train.t"], numbers["train.x0"])
    item = f"train.{OFFICIAL[path]}"
    assert_close(batch.noisy, numbers[f"{item}.x_t"], **CLOSE)
    assert_close(batch.velocity, numbers[f"{item}.u_t"], **CLOSE)
    assert [i is j for i, j in zip(batch.inputs, (batch.noisy, batch.t), strict=True)] == [True] * 2
    terms = process.loss(numbers[f"{item}.model_out"], batch)
    suffix = f".w_{weight}" if weight else ""
    assert_close(terms["loss"], numbers[f"{item}.{prediction}{suffix}.loss"], **CLOSE)
    assert_close(terms["mse"], numbers[f"{item}.{prediction}.loss"], **CLOSE)


@pytest.mark.parametrize("path", OFFICIAL)
def test_golden_outputs_are_those_of_the_network_on_our_inputs(numbers, path):
    net = SiT(input_size=8, hidden_size=40, depth=4, num_heads=4, num_classes=10).eval()
    net.load_state_dict({k[3:]: v for k, v in numbers.items() if k.startswith("sd.")})
    batch = Interpolant(path).add_noise(
        numbers["train.x1"], numbers["train.t"], numbers["train.x0"]
    )
    with torch.no_grad():
        out = net(*batch.inputs, numbers["train.y"])
    assert_close(out, numbers[f"train.{OFFICIAL[path]}.model_out"], **CLOSE)


@pytest.mark.parametrize(("path", "prediction"), PAIRS)
@pytest.mark.parametrize("kind", ["drift", "score"])
def test_drift_and_score_match_golden(numbers, golden_out, kind, path, prediction):
    function = getattr(Interpolant(path, prediction), kind)
    ours = function(golden_out, numbers["train.x0"], numbers["train.t"])
    assert_close(ours, numbers[f"{kind}.{OFFICIAL[path]}.{prediction}"], **CLOSE)


@pytest.mark.parametrize(
    ("path", "prediction", "train", "ode", "sde", "sbdm"),
    [
        ("linear", "velocity", (0, 1), (0, 1), (0, 1), (0, 1)),
        ("gvp", "velocity", (0, 1), (0, 1), (0, 1), (0, 1)),
        *(
            (path, prediction, *[(1e-3, 1 - 1e-3)] * 4)
            for path in ("linear", "gvp")
            for prediction in ("noise", "score")
        ),
        *(
            ("vp", prediction, (0, 1 - 1e-5), *[(0, 1 - 1e-3)] * 3)
            for prediction in ("velocity", "noise", "score")
        ),
    ],
)
def test_published_intervals(path, prediction, train, ode, sde, sbdm):
    process = Interpolant(path, prediction)
    assert process.train_interval == train and process.ode_interval == ode
    assert process.sde_interval() == sde
    assert process.sde_interval(divides_by_alpha=True) == sbdm


def test_distances_from_the_ends_can_be_chosen():
    process = Interpolant("linear", "velocity", train_eps=0.1, sample_eps=0.2)
    # Where nothing is infinite, nothing is left out.
    assert process.train_interval == process.ode_interval == (0, 1)
    assert process.sde_interval() == (0, 0.8)
    assert process.sde_interval(divides_by_alpha=True) == (0.2, 0.8)
    process = Interpolant("gvp", "noise", train_eps=0.1, sample_eps=0.2)
    assert process.train_interval == (0.1, 0.9) and process.ode_interval == (0.2, 0.8)
    assert Interpolant("vp", train_eps=0.1).train_interval == (0, 0.9)


@pytest.mark.parametrize("name", PATHS)
def test_rates_are_derivatives_and_the_path_runs_from_noise_to_data(name):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    path = PATHS[name](t)
    for value, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
        (derivative,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert_close(rate, derivative)
    if name != "linear":
        assert_close(path.alpha**2 + path.sigma**2, torch.ones_like(t))
    ends = PATHS[name](torch.tensor([0.0, 1.0]))
    nothing = math.exp(-5) if name == "vp" else 0.0
    assert_close(ends.alpha, torch.tensor([nothing, 1.0]), rtol=0, atol=5e-4)
    assert_close(ends.sigma, torch.tensor([1.0, 0.0]), rtol=0, atol=5e-4)


def test_vp_keeps_its_digits_near_data():
    t = torch.tensor([0.999, 0.9999])
    assert_close(PATHS["vp"](t).sigma, PATHS["vp"](t.double()).sigma.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_all_predictions_describe_the_same_drift_and_score(path):
    """For normal data every perfect prediction is known in closed form."""
    t = torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64)
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    mean, std = 0.7, 0.4
    at = Interpolant(path).at(t, x)
    score = (at.alpha * mean - x) / (at.alpha**2 * std**2 + at.sigma**2)
    noise, data = -at.sigma * score, (x + at.sigma**2 * score) / at.alpha
    outs = {"score": score, "noise": noise, "velocity": at.velocity(data, noise)}
    for prediction, out in outs.items():
        process = Interpolant(path, prediction)
        assert_close(process.drift(out, x, t), outs["velocity"])
        assert_close(process.score(out, x, t), score)


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_score_of_a_velocity_is_finite_at_pure_noise(path):
    x, out = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    # All that is left is the score of a standard normal.
    assert_close(Interpolant(path).score(out, x, torch.zeros(2)), -x)


class FixedDraws:
    def __init__(self, count):
        self.count, self.asked = count, []

    def uniform(self, purpose, *shape):
        self.asked.append((purpose, shape))
        return torch.linspace(0, 1, self.count)

    def normal(self, purpose, *shape):
        self.asked.append((purpose, shape))
        return torch.full((self.count, *shape), 0.5)


def test_corrupting_covers_the_interval_with_the_draws_that_it_is_given():
    clean, draws = torch.randn(5, 2, 3, 3), FixedDraws(5)
    process = Interpolant("gvp", "noise")
    batch = process.corrupt(clean, draws)
    assert draws.asked == [("times", ()), ("noise", (2, 3, 3))]
    assert_close(batch.t, torch.linspace(0.001, 0.999, 5))
    expected = process.add_noise(clean, batch.t, torch.full_like(clean, 0.5))
    assert torch.equal(batch.noisy, expected.noisy) and batch.clean is clean


@pytest.mark.parametrize(("path", "prediction"), PAIRS)
def test_losses_are_finite_at_the_ends_of_training(path, prediction):
    weights = [None] if prediction == "velocity" else [None, "velocity", "likelihood"]
    for weight in weights:
        process = Interpolant(path, prediction, weight)
        t = torch.tensor(process.train_interval)
        batch = process.add_noise(torch.rand(2, 1, 2, 2), t, torch.randn(2, 1, 2, 2))
        out = torch.zeros(2, 1, 2, 2, requires_grad=True)
        process.loss(out, batch)["loss"].sum().backward()
        assert out.grad.isfinite().all()


def test_distillation_is_the_squared_distance():
    process = Interpolant()
    clean = torch.rand(2, 1, 4, 4)
    batch = process.add_noise(clean, torch.tensor([0.2, 0.8]), torch.randn_like(clean))
    out = torch.randn_like(clean)
    terms = process.distillation_loss(
        out + torch.tensor([0.5, 2.0]).view(2, 1, 1, 1), out, batch, False
    )
    assert set(terms) == {"kd_mse", "kd"}
    assert_close(terms["kd"], torch.tensor([0.25, 4.0]))
    assert process.learns_variance is False
    with pytest.raises(AssertionError):
        process.distillation_loss(out, out, batch, True)


def test_output_with_a_variance_is_refused():
    process, x, t = Interpolant(), torch.zeros(1, 1, 4, 4), torch.tensor([0.5])
    batch, out = process.add_noise(x, t, x), torch.zeros(1, 2, 4, 4)
    message = r"\(1, 2, 4, 4\).*\(1, 1, 4, 4\)"
    with pytest.raises(InputError, match=message):
        process.loss(out, batch)
    with pytest.raises(InputError, match=message):
        process.distillation_loss(out, out, batch, False)
    for function in (process.drift, process.score):
        with pytest.raises(InputError, match=message):
            function(out, x, t)


def test_networks_of_another_process_are_refused():
    sizes = {"input_size": 4, "hidden_size": 16, "depth": 1, "num_heads": 2}
    Interpolant().check(SiT(**sizes))
    with pytest.raises(InputError, match=r"teacher: a DiT needs .*'diffusion'.*'interpolant'"):
        Interpolant().check(DiT(**sizes), "teacher")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"path": "cosine"}, r"process.path='cosine'.*valid: linear, gvp, vp$"),
        ({"prediction": "eps"}, r"process.prediction='eps'.*velocity, noise, score"),
        (
            {"prediction": "noise", "loss_weight": "snr"},
            r"process.loss_weight='snr'.*velocity, likelihood or null",
        ),
        ({"loss_weight": "velocity"}, r"loss_weight='velocity': only .* noise and score"),
        ({"train_eps": 0.5}, r"process.train_eps=0.5: .*below 0.5"),
        ({"sample_eps": -0.1}, r"process.sample_eps=-0.1"),
        ({"sample_eps": math.nan}, r"process.sample_eps=nan"),
        ({"path": "vp", "train_eps": 0}, r"process.train_eps=0: .*infinite.*1e-05"),
        ({"prediction": "score", "sample_eps": 0.0}, r"process.sample_eps=0: .*0.001"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        Interpolant(**setting)
