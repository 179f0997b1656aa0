from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.samplers.ode import ODESampler
from tinyfusion.samplers.sde import SDESampler
from tinyfusion.seeding import SampleNoise


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_three_guided_channels_match_golden(golden, golden_dit, scale):
    tensors = golden("dit")
    half = len(tensors["cfg.x"]) // 2
    with torch.no_grad():
        out = Guidance(scale, channels=3).predict(
            golden_dit,
            *(tensors[f"cfg.{name}"][:half] for name in "xt"),
            ClassLabels(tensors["cfg.y"][:half]),
        )
    torch.testing.assert_close(out, tensors[f"cfg.out_{scale}"][:half], rtol=1e-4, atol=1e-5)


@pytest.fixture
def inputs():
    labels = ClassLabels(torch.tensor([0, 1, 2]))
    return torch.randn(3, 1, 4, 4), torch.tensor([5, 400, 999]), labels


def test_scale_one_runs_the_network_once_on_the_plain_batch(tiny, inputs):
    sizes = []
    tiny.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    x, t, labels = inputs
    assert torch.equal(Guidance(1.0).predict(tiny, *inputs), tiny(x, t, labels.labels))
    assert sizes == [3, 3]


def test_guided_noise_is_extrapolated_and_variance_stays_conditional(tiny, inputs):
    x, t, labels = inputs
    with_class, without = tiny(x, t, labels.labels), tiny(x, t, torch.full((3,), 3))
    assert (with_class - without).abs().min() > 0
    out = Guidance(2.5).predict(tiny, x, t, labels)
    expected = without[:, :1] + 2.5 * (with_class - without)[:, :1]
    torch.testing.assert_close(out[:, :1], expected)
    torch.testing.assert_close(out[:, 1:], with_class[:, 1:])


def test_scale_zero_ignores_the_class(tiny, inputs):
    x, t, labels = inputs
    out = Guidance(0.0).predict(tiny, x, t, labels)
    torch.testing.assert_close(out[:, :1], tiny(x, t, torch.full((3,), 3))[:, :1])


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_bad_scale_is_refused(scale):
    with pytest.raises(InputError, match=f"scale={scale}"):
        Guidance(scale)


def test_bad_channels_are_refused(tiny, inputs):
    with pytest.raises(InputError, match="channels=0"):
        Guidance(2.0, channels=0)
    with pytest.raises(InputError, match="channels=3, but the data has 1"):
        Guidance(2.0, channels=3).predict(tiny, *inputs)


def test_model_without_null_class_cannot_be_guided(inputs):
    net = DiT(
        input_size=4,
        in_channels=1,
        hidden_size=16,
        depth=1,
        num_heads=2,
        num_classes=3,
        class_dropout_prob=0.0,
    )
    assert Guidance().predict(net, *inputs).shape == (3, 2, 4, 4)
    with pytest.raises(InputError, match="no null class"):
        Guidance(2.0).predict(net, *inputs)


@pytest.mark.parametrize("interval", [[1.0], [2.0, 1.0], [-1.0, 1.0], [0.0, float("nan")]])
def test_bad_interval_is_refused(interval):
    with pytest.raises(InputError, match=r"guidance interval=.* two noise levels, ascending"):
        Guidance(1.5, interval=interval)


def test_interval_is_open_below_and_closed_above():
    guidance = Guidance(1.5, interval=[0.5, 2])
    assert [guidance.at(level).scale for level in (0.5, 0.6, 2.0, 2.1)] == [1.0, 1.5, 1.5, 1.0]
    assert Guidance(1.5).at(1e9).scale == 1.5
    assert Guidance(1.5, interval=[0.5, float("inf")]).at(float("inf")).scale == 1.5


@pytest.mark.parametrize(
    ("process", "sampler"),
    [
        (GaussianDiffusion(), AncestralSampler(4)),
        (GaussianDiffusion(), DDIMSampler(4)),
        (Interpolant(), ODESampler("euler", 4)),
        (Interpolant(), SDESampler(steps=4)),
        (Interpolant(), SDESampler("heun", steps=3, last_step="tweedie")),
    ],
)
def test_samples_are_guided_within_the_interval_alone(process, sampler):
    """By noise levels found for each forward's own times, whatever the sampler."""
    seen: list[tuple[int, float]] = []

    def note(_, args):
        seen.append((len(args[0]), float(args[1][0])))

    torch.manual_seed(1)
    net = DiT(4, 2, 1, 16, 1, 2, num_classes=3, learn_sigma=process.learns_variance).eval()
    torch.nn.init.normal_(net.final_layer.linear.weight)
    torch.nn.init.normal_(net.final_layer.adaLN_modulation[1].weight)
    net.process_kind = process.kind
    net.register_forward_pre_hook(note)

    def run(guidance: Guidance) -> Tensor:
        seen.clear()
        noise = SampleNoise(0, range(2), (1, 4, 4))
        return sampler(net, process, noise, ClassLabels(torch.tensor([0, 1])), guidance)

    everywhere = run(Guidance(3.0))
    assert {size for size, _ in seen} == {4}
    times = [time for _, time in seen]
    levels = [process.noise_level(time) for time in times]
    middle = sum(sorted(set(levels))[:2]) / 2
    found = run(Guidance(3.0, interval=[0.0, middle]))
    assert [time for _, time in seen] == times
    assert [size for size, _ in seen] == [4 if level <= middle else 2 for level in levels]
    assert {size for size, _ in seen} == {2, 4}
    assert not torch.allclose(found, everywhere)
    assert torch.equal(run(Guidance(3.0, interval=[0.0, math.inf])), everywhere)


def test_noise_levels_are_those_of_the_noised_data():
    clean = torch.full((1, 1, 2, 2), 2.0)
    noise = torch.full_like(clean, 3.0)
    for process, time in ((GaussianDiffusion(), 400), (Interpolant("gvp"), 0.3)):
        of_noise = process.add_noise(0 * clean, torch.tensor([time]), noise).noisy / 3
        of_data = process.add_noise(clean, torch.tensor([time]), 0 * noise).noisy / 2
        ratio = float((of_noise / of_data).flatten()[0])
        assert process.noise_level(time) == pytest.approx(ratio, rel=1e-5)
    with pytest.raises(InputError, match="has no noise level"):
        MaskedDiffusion().noise_level(0.0)
