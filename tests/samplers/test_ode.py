"""ODE sampling against golden states, and against flows that are known in closed form."""

from __future__ import annotations

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
from tinyfusion.samplers.ode import ADAPTIVE, FIXED, ODESampler

ONE, TWO = ClassLabels(torch.tensor([0])), ClassLabels(torch.tensor([0, 1]))

ITEMS = [
    *(
        f"ode.{method}.{mode}"
        for method in ("euler", "heun2", "heun3", "dopri5", "dopri5_tight")
        for mode in ("plain", "cfg4")
    ),
    "ode.euler.GVP.velocity.plain",
    "ode.euler.Linear.noise.plain",
    "ode.euler.VP.score.plain",
]
LARGE = ("ode.euler.Linear.noise.plain", "ode.euler.VP.score.plain")


def tolerance(item: str) -> dict[str, float]:
    if "dopri5_tight" in item or item in LARGE:
        return {"rtol": 1e-3, "atol": 1e-3}
    if "dopri5" in item:
        return {"rtol": 1e-3, "atol": 5e-3}
    return {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("item", ITEMS)
def test_states_match_golden(golden, golden_sit, replay, item):
    tensors = golden("sit")
    _, method, *kind, mode = item.split(".")
    process = Interpolant(kind[0].lower(), kind[1]) if kind else Interpolant()
    tight = {"atol": 1e-7, "rtol": 1e-6} if method == "dopri5_tight" else {}
    sampler = ODESampler(method.removesuffix("_tight"), steps=9, **tight)
    guidance = Guidance(4.0, channels=3) if mode == "cfg4" else Guidance()
    start, labels = tensors["sample.z"], ClassLabels(tensors["sample.y"])
    states = [start]
    out = sampler(
        golden_sit, process, replay([start]), labels, guidance, lambda _, x: states.append(x)
    )
    assert len(states) == 1 + sampler.num_steps(process)
    assert torch.equal(out, states[-1])
    # The second half of a guided golden batch is the null half.
    expected = tensors[item]
    if expected.ndim == 5:
        assert_close(torch.stack(states), expected[:, : len(start)], **tolerance(item))
    else:
        assert_close(out, expected[: len(start)], **tolerance(item))


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_guided_velocity_matches_golden(golden, golden_sit, scale):
    tensors = golden("sit")
    half = len(tensors["cfg.x"]) // 2
    with torch.no_grad():
        out = Guidance(scale, channels=3).predict(
            golden_sit,
            *(tensors[f"cfg.{name}"][:half] for name in "xt"),
            ClassLabels(tensors["cfg.y"][:half]),
        )
    assert_close(out, tensors[f"cfg.out_{scale}"][:half], rtol=1e-4, atol=1e-5)


def flow(net, start, interval):
    """Where the ODE of normal data carries ``start``: its quantile stays the same."""
    first, last = (torch.full((len(start),), time) for time in interval)
    (mean, std), (mean_end, std_end) = net.marginal(first, start), net.marginal(last, start)
    return mean_end + std_end * (start - mean) / std


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE])
def test_every_method_follows_the_flow_of_normal_data(gaussian_net, replay, method):
    process, start = Interpolant(), torch.randn(2, 1, 4, 4)
    net = gaussian_net(process)
    sampler = ODESampler(method, steps=100, rtol=1e-4)
    out = sampler(net, process, replay([start]), TWO)
    loose = 0.02 if method == "euler" else 5e-3
    assert_close(out, flow(net, start, (0.0, 1.0)), rtol=0, atol=loose)
    # A path may not exist beyond its ends.
    assert min(net.times) >= 0 and max(net.times) <= 1


@pytest.mark.parametrize("method", ["heun2", "dopri5"])
@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_every_parametrisation_follows_the_flow(gaussian_net, replay, path, prediction, method):
    process, start = Interpolant(path, prediction, sample_eps=0.01), torch.randn(1, 1, 4, 4)
    net = gaussian_net(process)
    out = ODESampler(method, steps=200)(net, process, replay([start]), ONE)
    assert_close(out, flow(net, start, process.ode_interval), rtol=0, atol=0.01)
    first, last = process.ode_interval
    assert min(net.times) >= first - 1e-6 and max(net.times) <= last + 1e-6


def test_steps_are_counted_as_intervals(gaussian_net, replay):
    process, seen = Interpolant(), []
    net, start = gaussian_net(process), torch.randn(1, 1, 2, 2)
    sampler = ODESampler("euler", steps=4)
    sampler(
        net,
        process,
        replay([start]),
        ONE,
        on_step=lambda i, _: seen.append(i),
    )
    assert seen == [0, 1, 2, 3] and net.times == [0.0, 0.25, 0.5, 0.75]
    assert sampler.num_steps(process) == 4
    assert ODESampler("dopri5", steps=4).num_steps(process) == 1


@pytest.fixture
def tiny_sit():
    torch.manual_seed(1)
    net = SiT(input_size=4, in_channels=1, hidden_size=16, depth=2, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def test_samples_do_not_depend_on_batching(tiny_sit):
    arguments = Interpolant(), ODESampler("heun2", 4), torch.tensor([0, 1, 2, 0, 1])
    whole = generate(tiny_sit, *arguments, seed=5, guidance=Guidance(2.0))
    parts = generate(tiny_sit, *arguments, seed=5, guidance=Guidance(2.0), batch_size=2)
    assert_close(parts, whole, rtol=0, atol=1e-4)
    adaptive = Interpolant(), ODESampler(atol=1e-5, rtol=1e-5), arguments[2]
    whole = generate(tiny_sit, *adaptive, seed=5)
    parts = generate(tiny_sit, *adaptive, seed=5, batch_size=2)
    assert_close(parts, whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["heun2", "dopri5"])
def test_state_keeps_full_precision_and_no_gradient(tiny_sit, replay, method):
    seen = []
    tiny_sit.bfloat16().register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    sampler = ODESampler(method, 3, atol=0.1, rtol=0.1)
    out = sampler(tiny_sit, Interpolant(), replay([torch.randn(1, 1, 4, 4)]), ONE)
    assert set(seen) == {torch.bfloat16}
    assert out.dtype == torch.float32 and not out.requires_grad


def test_model_that_is_not_finite_is_named(tiny_sit, replay):
    torch.nn.init.constant_(tiny_sit.final_layer.linear.bias, float("nan"))
    arguments = Interpolant(), replay([torch.randn(1, 1, 4, 4)] * 2), ONE
    with pytest.raises(InputError, match=r"not finite at t=0;"):
        ODESampler("dopri5")(tiny_sit, *arguments)
    # Equal steps go on, as those of other samplers do.
    assert ODESampler("euler", 2)(tiny_sit, *arguments).isnan().all()


def test_other_processes_are_refused(tiny_sit, replay):
    with pytest.raises(InputError, match=r"ODESampler samples .*'interpolant'.*'diffusion'"):
        ODESampler("euler")(tiny_sit, GaussianDiffusion(), replay([]), ONE)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "heun"}, r"sampler.method='heun'.*heun2.*dopri5"),
        ({"method": "scipy_solver"}, r"valid: euler"),
        ({"steps": 0}, r"sampler.steps=0"),
        ({"steps": 2.5}, r"sampler.steps=2.5: must be a whole number"),
        ({"atol": 0}, r"sampler.atol=0"),
        ({"rtol": float("nan")}, r"sampler.rtol=nan"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        ODESampler(**setting)
