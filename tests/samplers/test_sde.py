"""SDE sampling against golden states, and against distributions that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from tinyfusion.backbones.sit import SiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.samplers.generate import generate
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.samplers.ode import ODESampler
from tinyfusion.samplers.sde import FORMS, SDESampler

LABELS = ClassLabels(torch.tensor([0, 1]))


@pytest.mark.parametrize("mode", ["plain", "cfg4"])
def test_states_match_golden(golden, golden_sit, replay, mode):
    tensors = golden("sit")
    start = tensors["sample.z"]
    noise = replay([start] + [tensors[f"noise.{i}"][: len(start)] for i in range(9)])
    guidance = Guidance(4.0, channels=3) if mode == "cfg4" else Guidance()
    states, process, sampler = [], Interpolant(), SDESampler(steps=10)
    out = sampler(
        golden_sit,
        process,
        noise,
        ClassLabels(tensors["sample.y"]),
        guidance,
        lambda i, x: states.append((i, x)),
    )
    assert [i for i, _ in states] == list(range(sampler.num_steps(process)))
    expected = tensors[f"sde.euler.{mode}"][:, : len(start)]
    assert_close(torch.stack([x for _, x in states]), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(out, states[-1][1])


class Noise:
    """Standard normal draws, counted."""

    def __init__(self, *shape):
        self.shape, self.calls = shape, 0

    def __call__(self):
        self.calls += 1
        return torch.randn(self.shape)


def states_of(sampler, net, process, noise):
    """The state after every step."""
    states = []
    sampler(net, process, noise, LABELS, on_step=lambda _, x: states.append(x))
    return states


def moments(gaussian_net, process, sampler):
    """Mean and standard deviation of 20,000 samples of normal data of mean 0.7 and std 0.4."""
    noise = Noise(2, 1, 100, 100)
    out = sampler(gaussian_net(process), process, noise, LABELS)
    return out.mean().item(), out.std().item()


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_every_diffusion_keeps_the_distribution(gaussian_net, path, form, method):
    process = Interpolant(path, sample_eps=0.02)
    # The form of score-based diffusion is large near noise and wants short steps there.
    steps = 400 if form == "sbdm" else 80
    # The step "mean" would drop the noise of its length, which "constant" has near data too.
    sampler = SDESampler(method, steps, diffusion_form=form, last_step="euler", last_step_size=0.02)
    mean, std = moments(gaussian_net, process, sampler)
    # VP does not start at pure noise: exp(-5) of the mean is missing.
    assert mean == pytest.approx(0.7, abs=0.02) and std == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(
    ("form", "t", "expected"),
    [
        ("constant", 0.3, 2.0),
        # Starts at sample_eps. On this path d = pi / 2 * cot(pi t / 2).
        ("sbdm", 0.4, math.pi / math.tan(0.2 * math.pi)),
        ("sigma", 0.3, 2 * math.cos(0.15 * math.pi)),
        ("linear", 0.3, 2 * 0.7),
        ("decreasing", 0.3, (2 * math.cos(0.3 * math.pi) + 1) ** 2 / 4),
        ("increasing_decreasing", 0.3, 2 * math.sin(0.3 * math.pi) ** 2),
    ],
)
def test_diffusion_is_the_published_formula(gaussian_net, replay, form, t, expected):
    """What a step of length dt adds of its draw is sqrt(2 w dt)."""
    process = Interpolant("gvp", sample_eps=0.2)
    net, draws = gaussian_net(process), [torch.randn(2, 1, 2, 2) for _ in range(3)]
    sampler = SDESampler(steps=3, diffusion_form=form, diffusion_norm=2.0, last_step_size=0.4)
    _, with_draw, _ = states_of(sampler, net, process, replay(draws))
    _, without, _ = states_of(sampler, net, process, replay([*draws[:2], 0 * draws[2]]))
    dt = 0.6 - t
    w = ((with_draw - without) / draws[2]) ** 2 / (2 * dt)
    assert_close(w, torch.full_like(w, expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler", None])
def test_every_prediction_and_last_step_end_at_the_data(gaussian_net, prediction, last_step):
    process = Interpolant("linear", prediction)
    sampler = SDESampler(steps=100, last_step=last_step, last_step_size=0.02)
    mean, std = moments(gaussian_net, process, sampler)
    assert mean == pytest.approx(0.7, abs=0.02) and std == pytest.approx(0.4, abs=0.03)


def test_last_steps_are_those_of_their_formulas(gaussian_net, replay):
    process, size = Interpolant(), 0.3
    net, draws = gaussian_net(process), [torch.randn(2, 1, 3, 3) for _ in range(3)]
    outs = {}
    for last_step in ("mean", "tweedie", "euler"):
        sampler = SDESampler(steps=3, last_step=last_step, last_step_size=size)
        *_, before, outs[last_step] = states_of(sampler, net, process, replay(draws))
    t = torch.full((2,), 1 - size)
    velocity = net(before, t, LABELS.labels)
    # On the linear path data = x + (1 - t) * velocity, and the score is -noise / (1 - t).
    score = -(before - (1 - size) * velocity) / size
    assert_close(outs["euler"], before + size * velocity)
    assert_close(outs["tweedie"], outs["euler"])
    assert_close(outs["mean"], before + size * (velocity + size * score))


@pytest.mark.parametrize(("method", "ode"), [("euler", "euler"), ("heun", "heun2")])
def test_without_diffusion_it_is_the_ode(gaussian_net, replay, method, ode):
    process, draws = Interpolant("gvp", "noise"), [torch.randn(2, 1, 3, 3) for _ in range(9)]
    net = gaussian_net(process)
    sampler = SDESampler(method, 8, diffusion_norm=0.0, diffusion_form="constant", last_step=None)
    out = sampler(net, process, replay(draws), LABELS)
    expected = ODESampler(ode, 8)(net, process, replay(draws), LABELS)
    assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_heun_adds_its_noise_first(replay):
    """One step from t = 0 to t = 1/2, worked out by hand."""

    class Identity(torch.nn.Module):
        process_kind = "interpolant"

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t, y, run_block=None):
            return x

    start, kick = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    sampler = SDESampler(
        "heun", 2, diffusion_form="constant", diffusion_norm=2.0, last_step_size=0.5
    )
    state, _ = states_of(sampler, Identity(), Interpolant(), replay([start, kick]))
    x = start + math.sqrt(2 * 2 * 0.5) * kick
    # Its drift is v + 2 (t v - x) / (1 - t) for v = x, which is -x at any time.
    ahead = x - 0.5 * x
    assert_close(state, x - 0.5 * (x + ahead) / 2)


@pytest.mark.parametrize(("last_step", "draws"), [("mean", 5), (None, 6)])
def test_number_of_steps_and_draws(gaussian_net, last_step, draws):
    process, noise, seen = Interpolant(), Noise(2, 1, 2, 2), []
    sampler = SDESampler(steps=5, last_step=last_step)
    net = gaussian_net(process)
    sampler(net, process, noise, LABELS, on_step=lambda i, _: seen.append(i))
    assert noise.calls == draws and seen == [0, 1, 2, 3, 4]
    assert sampler.num_steps(process) == 5 and len(net.times) == 5


@pytest.mark.parametrize("form", ["constant", "sigma"])
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_data_itself_is_never_asked_for_its_score(gaussian_net, path, method, form):
    process = Interpolant(path)
    sampler = SDESampler(method, 6, diffusion_form=form, last_step=None)
    net = gaussian_net(process)
    assert sampler(net, process, Noise(2, 1, 4, 4), LABELS).isfinite().all()
    assert max(net.times) < 1


def test_samples_do_not_depend_on_batching_and_states_keep_their_precision():
    net = SiT(input_size=4, in_channels=1, hidden_size=16, depth=2, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    arguments = Interpolant(), SDESampler(steps=4), torch.tensor([0, 1, 2, 0, 1])
    whole = generate(net, *arguments, seed=5, guidance=Guidance(2.0))
    parts = generate(net, *arguments, seed=5, guidance=Guidance(2.0), batch_size=2)
    assert_close(parts, whole, rtol=0, atol=1e-4)
    half = SDESampler(steps=3)(net.bfloat16(), Interpolant(), Noise(2, 1, 4, 4), LABELS)
    assert half.dtype == torch.float32 and not half.requires_grad


def test_what_does_not_fit_the_process_is_refused_before_sampling():
    sbdm = SDESampler(diffusion_form="sbdm")
    with pytest.raises(InputError, match=r"sbdm is infinite at t=0 of path 'gvp'.*sample_eps"):
        sbdm.num_steps(Interpolant("gvp"))
    for process in (Interpolant("vp"), Interpolant(sample_eps=1e-3), Interpolant("gvp", "noise")):
        assert sbdm.num_steps(process) == 250
    with pytest.raises(InputError, match=r"last_step_size=0.7 leaves nothing"):
        SDESampler(last_step_size=0.7).num_steps(Interpolant("linear", "noise", sample_eps=0.4))
    with pytest.raises(InputError, match=r"SDESampler samples .*'interpolant'.*'diffusion'"):
        SDESampler()(torch.nn.Linear(1, 1), GaussianDiffusion(), None, LABELS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "heun2"}, r"sampler.method='heun2'.*valid: euler, heun$"),
        ({"diffusion_form": "SBDM"}, r"sampler.diffusion_form='SBDM'.*constant, sbdm, sigma"),
        ({"diffusion_norm": -1.0}, r"sampler.diffusion_norm=-1.0"),
        ({"last_step": "Mean"}, r"sampler.last_step='Mean'.*mean, tweedie, euler, null"),
        ({"last_step_size": 1.0}, r"sampler.last_step_size=1.0: .*below 1"),
        ({"last_step_size": 0.0}, r"sampler.last_step_size=0.0: .*last_step=null"),
        ({"steps": 1}, r"sampler.steps=1: .*at least 2 with a last step"),
        ({"steps": 0, "last_step": None}, r"sampler.steps=0: .*at least 1$"),
        ({"steps": 10.5}, r"sampler.steps=10.5: must be a whole number"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        SDESampler(**setting)
