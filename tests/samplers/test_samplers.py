from __future__ import annotations

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.guidance import Guidance

ONE, TWO = ClassLabels(torch.tensor([0])), ClassLabels(torch.tensor([0, 1]))

LOOPS = [
    f"{kind}.{steps}.clip{clip}.{mode}"
    for kind, steps in (("ddim", "10"), ("ddim", "ddim10"), ("ddpm", "10"))
    for clip in (0, 1)
    for mode in ("plain", "cfg4")
] + ["ddim.10.clip1.eta1"]


@pytest.mark.parametrize("item", LOOPS)
def test_every_state_matches_golden(golden, golden_dit, replay, item):
    tensors = golden("ddpm")
    kind, steps, clip, mode = item.split(".")
    eta = 1.0 if mode == "eta1" else 0.0
    sampler = AncestralSampler(steps) if kind == "ddpm" else DDIMSampler(steps, eta)
    process = GaussianDiffusion(clip=clip == "clip1")
    labels, start = ClassLabels(tensors["sample.y"]), tensors["sample.z"]
    noise = replay([start] + [tensors[f"noise.{i}"][: len(start)] for i in range(10)])
    guidance = Guidance(4.0, channels=3) if mode == "cfg4" else Guidance()
    states = []
    out = sampler(golden_dit, process, noise, labels, guidance, lambda i, x: states.append((i, x)))
    # The second half of a guided golden batch is the null half, which the network ignores.
    expected = tensors[item][:, : len(start)]
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if process.clip else {"rtol": 1e-3, "atol": 2e-3}
    assert [i for i, _ in states] == list(range(10))
    torch.testing.assert_close(torch.stack([x for _, x in states]), expected, **tolerance)
    assert torch.equal(out, states[-1][1])


class CountingNoise:
    def __init__(self, shape):
        self.shape, self.calls = shape, 0
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self):
        self.calls += 1
        return torch.randn(self.shape, generator=self.generator)


@pytest.mark.parametrize(
    ("sampler", "draws"),
    [(AncestralSampler(4), 5), (DDIMSampler(4), 1), (DDIMSampler(4, eta=0.5), 5)],
)
def test_number_of_draws(tiny, sampler, draws):
    noise = CountingNoise((2, 1, 4, 4))
    sampler(tiny, GaussianDiffusion(clip=True), noise, TWO)
    assert noise.calls == draws


@pytest.mark.parametrize("sampler", [AncestralSampler("2,3"), DDIMSampler(5, eta=1.0)])
def test_works_without_learned_variance(sampler):
    net = DiT(input_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, learn_sigma=False)
    process = GaussianDiffusion(clip=True)
    out = sampler(net, process, CountingNoise((2, 1, 4, 4)), TWO)
    assert out.shape == (2, 1, 4, 4)
    # The last step returns the clamped prediction itself.
    assert out.abs().max() <= 1


def test_perfect_denoiser_is_recovered_by_ddim():
    """With the true noise of one known image, DDIM returns that image from any start."""
    process = GaussianDiffusion()
    image = torch.rand(2, 1, 4, 4) * 2 - 1

    class Knows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t, y, run_block=None):
            return process.noise_from_clean(x, t, image)

    out = DDIMSampler(7)(Knows(), process, CountingNoise((2, 1, 4, 4)), TWO)
    torch.testing.assert_close(out, image, rtol=0, atol=1e-3)


def test_no_gradients_are_recorded_and_result_can_enter_training(tiny):
    out = DDIMSampler(2)(tiny, GaussianDiffusion(), CountingNoise((1, 1, 4, 4)), ONE)
    assert not out.requires_grad
    tiny(out, torch.tensor([3]), torch.tensor([0])).sum().backward()


@pytest.mark.parametrize("sampler", [AncestralSampler(5), DDIMSampler(5)])
def test_process_of_another_kind_is_refused(sampler, tiny):
    with pytest.raises(InputError, match=r"kind 'diffusion'.*kind 'interpolant'"):
        sampler(tiny, Interpolant(), CountingNoise((1, 1, 4, 4)), ONE)


def test_state_keeps_full_precision_when_the_network_is_half(tiny):
    seen = []
    tiny.bfloat16().register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    out = DDIMSampler(2)(
        tiny,
        GaussianDiffusion(clip=True),
        CountingNoise((1, 1, 4, 4)),
        ONE,
    )
    assert seen == [torch.bfloat16] * 2
    assert out.dtype == torch.float32


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match=r"eta=1.5.*between 0 and 1"):
        DDIMSampler(10, eta=1.5)
    with pytest.raises(InputError, match="2000"):
        AncestralSampler(2000).num_steps(GaussianDiffusion())
    assert DDIMSampler("10,15").num_steps(GaussianDiffusion()) == 25
