from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.tokens import patchify, unpatchify
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.samplers.autoregressive import AutoregressiveSampler, draw_tokens, hidden_after
from tinyfusion.samplers.generate import generate
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.seeding import SampleNoise


@pytest.fixture(scope="module")
def numbers(golden):
    return golden("mar")


@pytest.fixture
def tiny() -> MAR:
    """Two channels, 16 tokens, weights large enough that every input matters."""
    torch.manual_seed(1)
    net = MAR(
        input_size=8,
        hidden_size=16,
        encoder_depth=1,
        decoder_depth=1,
        num_heads=2,
        patch_size=2,
        in_channels=2,
        num_classes=3,
        buffer_size=2,
        head_depth=1,
        head_width=16,
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


PROCESS = MaskedDiffusion(patch_size=2, clip=True)
LABELS = ClassLabels(torch.tensor([0, 1, 2]))


def noise(count: int = 3, seed: int = 0) -> SampleNoise:
    return SampleNoise(seed, range(count), (2, 8, 8))


# Against the published code


@pytest.mark.parametrize("scale, temperature", [(1.0, 1.0), (3.0, 0.9)])
def test_head_samples_match_golden(numbers, golden_mar, scale, temperature):
    # With guidance the first half of the rows is sampled, the rest are the null class.
    count = 6 if scale == 1 else 3
    draws = (numbers[name][:count] for name in ["sample.init", *(f"noise.{i}" for i in range(10))])
    with torch.no_grad():
        tokens = draw_tokens(
            golden_mar,
            MaskedDiffusion().diffusion.respaced(10),
            numbers["net.c"],
            draws,
            channels=8,
            guidance=Guidance(scale),
            temperature=temperature,
        )
    name = f"sample.out_cfg{scale:g}_temp{temperature:g}"
    torch.testing.assert_close(tokens, numbers[name][:count], rtol=1e-3, atol=2e-2)


def test_guided_head_matches_golden(numbers, golden_mar):
    noisy, t = numbers["net.x"][:3].repeat(2, 1), numbers["net.cfg_t"]
    with torch.no_grad():
        with_class, without = golden_mar.head(noisy, t, numbers["net.c"]).chunk(2)
    out = Guidance(3.0).combine(with_class, without, channels=8)
    torch.testing.assert_close(out, numbers["net.cfg_out_3.0"][:3], rtol=1e-4, atol=1e-5)


# Schedules


def test_cosine_schedule_by_hand():
    assert hidden_after(16, 8) == [15, 14, 13, 11, 8, 6, 3, 0]
    assert hidden_after(16, 16) == list(range(15, -1, -1))
    assert hidden_after(16, 2) == [11, 0]
    assert hidden_after(16, 1) == [0] and hidden_after(1, 1) == [0]


@pytest.mark.parametrize("count, iterations", [(256, 64), (256, 256), (256, 10), (64, 63), (9, 5)])
def test_every_iteration_reveals_tokens_and_the_last_one_the_rest(count, iterations):
    hidden = hidden_after(count, iterations)
    assert len(hidden) == iterations and hidden[-1] == 0
    steps = [before - after for before, after in pairwise([count, *hidden])]
    assert min(steps) >= 1 and sum(steps) == count
    for index, still in enumerate(hidden[:-1]):
        # Lower than the cosine only where each iteration has to reveal one.
        share = math.cos(math.pi / 2 * (index + 1) / iterations)
        assert still <= math.floor(count * share)
        assert still == math.floor(count * share) or steps[index] == 1


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_guidance_schedule(tiny, schedule, monkeypatch):
    scales = []
    combine = Guidance.combine

    def record(self: Guidance, *args: Tensor, channels: int) -> Tensor:
        scales.append(self.scale)
        return combine(self, *args, channels=channels)

    monkeypatch.setattr(Guidance, "combine", record)
    sampler = AutoregressiveSampler(8, head_steps=1, guidance_schedule=schedule)
    sampler(tiny, PROCESS, noise(), LABELS, Guidance(3.0))
    # The published schedule counts one token as hidden after the last iteration.
    hidden = [15, 14, 13, 11, 8, 6, 3, 1]
    linear = [1 + 2 * (16 - still) / 16 for still in hidden]
    assert scales == pytest.approx(linear if schedule == "linear" else [3.0] * 8)


# What the network is asked


def mask_of(hidden: Tensor) -> Tensor:
    """True where one of 16 tokens is hidden, shape (B, 16)."""
    return torch.zeros(len(hidden), 16, dtype=torch.bool).scatter(1, hidden, True)


class Recorder:
    """Keeps what a network's transformer and head were given."""

    def __init__(self, net: MAR, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.head_rows: list[int] = []
        conditions, head = net.conditions, net.head

        def asked(x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
            self.seen.append((x.clone(), mask_of(hidden), y.clone()))
            return conditions(x, hidden, y)

        def drawn(noisy: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            self.head_rows.append(len(noisy))
            return head(noisy, t, cond)

        monkeypatch.setattr(net, "conditions", asked)
        monkeypatch.setattr(net, "head", drawn)


def test_each_token_is_drawn_once_and_then_known(tiny, monkeypatch):
    recorder, states = Recorder(tiny, monkeypatch), []
    sampler = AutoregressiveSampler(8, head_steps=2)
    out = sampler(tiny, PROCESS, noise(), LABELS, on_step=lambda i, x: states.append((i, x)))
    assert (
        [index for index, _ in states] == list(range(8)) == list(range(sampler.num_steps(PROCESS)))
    )
    hidden = [16, 15, 14, 13, 11, 8, 6, 3, 0]
    # Two head steps for the tokens of the iteration and no others.
    revealed = [3 * (before - after) for before, after in pairwise(hidden)]
    assert recorder.head_rows == [rows for rows in revealed for _ in range(2)]
    # The first draw decides the order, of which the last tokens come first.
    ranks = patchify(noise()(), 2)[..., 0].argsort(1).argsort(1)
    for (x, mask, y), (_, after), count in zip(recorder.seen, states, hidden, strict=False):
        assert torch.equal(y, LABELS.labels)
        assert torch.equal(mask, ranks < count)
        tokens = patchify(x, 2)
        assert torch.equal(tokens == 0, mask[..., None].expand_as(tokens))
        # The states that were handed out are what the network saw, and what was kept.
        assert torch.equal(tokens[~mask], patchify(out, 2)[~mask])
        assert torch.equal(patchify(after, 2)[~mask], tokens[~mask])
    assert torch.equal(states[-1][1], out) and (patchify(out, 2) != 0).all()


def test_guidance_doubles_the_batch_once(tiny, monkeypatch):
    recorder = Recorder(tiny, monkeypatch)
    AutoregressiveSampler(2, head_steps=3)(tiny, PROCESS, noise(), LABELS, Guidance(2.0))
    assert recorder.head_rows == [2 * 3 * 5] * 3 + [2 * 3 * 11] * 3
    for x, mask, y in recorder.seen:
        assert y.tolist() == [0, 1, 2, 3, 3, 3]
        assert torch.equal(x[:3], x[3:]) and torch.equal(mask[:3], mask[3:])


def test_no_guidance_no_null_class(tiny, monkeypatch):
    tiny.class_dropout_prob = 0.0
    sampler = AutoregressiveSampler(2, head_steps=1)
    assert sampler(tiny, PROCESS, noise(), LABELS).shape == (3, 2, 8, 8)
    with pytest.raises(InputError, match="no null class"):
        sampler(tiny, PROCESS, noise(), LABELS, Guidance(2.0))


def test_guided_channels_are_those_of_the_data(tiny):
    # A chain of one step, without noise: what is left is the prediction.
    process = MaskedDiffusion(patch_size=2, num_steps=1)
    sampler = AutoregressiveSampler(1, 1, temperature=0.0, guidance_schedule="constant")

    def sample(guidance: Guidance, labels: ClassLabels = LABELS) -> Tensor:
        return sampler(tiny, process, noise(), labels, guidance)

    plain, null = sample(Guidance()), sample(Guidance(), ClassLabels(torch.full((3,), 3)))
    assert (plain - null).abs().amax((0, 2, 3)).min() > 0.1
    first = sample(Guidance(0.0, channels=1))
    torch.testing.assert_close(first[:, :1], null[:, :1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first[:, 1:], plain[:, 1:], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="channels=3, but the data has 2"):
        sample(Guidance(2.0, channels=3))


# Randomness


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_samples_do_not_depend_on_the_batch(tiny, scale):
    sampler = AutoregressiveSampler(5, head_steps=4)
    labels = torch.tensor([0, 1, 2, 0, 1])

    def sample(**options) -> Tensor:
        return generate(tiny, PROCESS, sampler, labels, 3, Guidance(scale), **options)

    whole = sample()
    torch.testing.assert_close(sample(batch_size=1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample(batch_size=3), whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(sample(), whole)
    assert (generate(tiny, PROCESS, sampler, labels, 4) - whole).abs().max() > 0.1


def test_number_of_draws_depends_on_the_head_steps_alone(tiny):
    for iterations in (1, 4, 16):
        source, drawn = noise(), []

        def counted(source=source, drawn=drawn) -> Tensor:
            drawn.append(source())
            return drawn[-1]

        AutoregressiveSampler(iterations, head_steps=6)(tiny, PROCESS, counted, LABELS)
        # The order, the start, and one for each step.
        assert len(drawn) == 1 + 1 + 6


def test_each_sample_has_an_order_of_its_own(tiny, monkeypatch):
    recorder = Recorder(tiny, monkeypatch)
    labels = ClassLabels(torch.zeros(400, dtype=torch.long))
    AutoregressiveSampler(2, head_steps=1)(tiny, PROCESS, noise(400), labels)
    mask = recorder.seen[1][1]
    share = mask.float().mean(0)
    assert (share - 11 / 16).abs().max() < 0.1
    assert len(mask.unique(dim=0)) > 300


@pytest.mark.parametrize("which", [1, 3])
def test_each_token_is_drawn_from_its_own_noise(tiny, replay, which):
    draws = list(torch.randn(5, 3, 2, 8, 8))
    # The token that the last iteration of two reveals in any case.
    last = patchify(draws[0], 2)[..., 0].argmin(1)
    own = torch.zeros(3, 16, dtype=torch.bool).scatter(1, last[:, None], True)
    sampler = AutoregressiveSampler(2, head_steps=3)
    before = sampler(tiny, PROCESS, replay(draws), LABELS)
    noise_of_token = patchify(draws[which], 2)
    noise_of_token[own] *= -1
    draws[which] = unpatchify(noise_of_token, 2)
    after = sampler(tiny, PROCESS, replay(draws), LABELS)
    changed = (patchify(after, 2) != patchify(before, 2)).any(-1)
    assert torch.equal(changed, own)


def test_temperature_scales_the_noise_of_the_steps_alone(tiny, replay):
    fixed = [torch.randn(3, 2, 8, 8) for _ in range(2)]
    some, others = (list(torch.randn(4, 3, 2, 8, 8)) for _ in range(2))

    def sample(temperature: float, steps: list[Tensor], start: list[Tensor] = fixed) -> Tensor:
        sampler = AutoregressiveSampler(3, head_steps=4, temperature=temperature)
        return sampler(tiny, PROCESS, replay([*start, *steps]), LABELS)

    cold = sample(0.0, some)
    assert torch.equal(cold, sample(0.0, others))
    assert not torch.allclose(cold, sample(0.0, some, [fixed[0], -fixed[1]]), atol=1e-2)
    assert not torch.allclose(sample(1.0, some), sample(1.0, others), atol=1e-2)
    half = [draw / 2 for draw in some]
    torch.testing.assert_close(sample(0.5, some), sample(1.0, half))


class Copies(Backbone):
    """Knows the truth about pictures of one value, normal around the label, in every pixel."""

    process_kind = "masked"
    in_channels, input_size, num_classes, patch_size, num_tokens = 1, 4, 10, 1, 16
    spread = 0.05

    def __init__(self, process: MaskedDiffusion) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.unused = nn.Parameter(torch.zeros(()))
        self._kept_S = process.diffusion.alphas_cumprod_S

    def config(self) -> dict[str, object]:
        return {}

    def forward(self, *inputs, run_block=None) -> Tensor:
        raise NotImplementedError

    def conditions(self, x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
        """Mean and variance of every token given those that are known, shape (B, 16, 2)."""
        mask = mask_of(hidden)
        known = (~mask).sum(1)
        mean = torch.where(known > 0, (x.flatten(1) * ~mask).sum(1) / known.clamp(min=1), y)
        variance = torch.where(known > 0, self.spread**2, 1.0)
        return torch.stack([mean, variance], 1)[:, None].expand(-1, 16, -1)

    def head(self, noisy: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        """Expected noise in noised normal data."""
        mean, variance = conditions[:, :1], conditions[:, 1:]
        kept = self._kept_S[t][:, None].float()
        return (1 - kept).sqrt() * (noisy - kept.sqrt() * mean) / (kept * variance + 1 - kept)


def test_tokens_follow_those_that_are_known():
    process = MaskedDiffusion()
    sampler = AutoregressiveSampler(16, head_steps=60)
    labels = torch.arange(600) % 2 * 5
    samples = generate(Copies(process), process, sampler, labels, 0, batch_size=600)
    values = samples.flatten(1).mean(1) - labels
    # Pictures are of one value, and the values are distributed as the data's.
    assert samples.flatten(1).std(1).max() < 6 * Copies.spread
    assert values.mean().abs() < 0.15 and (values.std() - 1).abs() < 0.1
    # States that were handed out are left as they were.
    states: list[Tensor] = []
    sampler(
        Copies(process),
        process,
        SampleNoise(0, [0], (1, 4, 4)),
        ClassLabels(labels[:1]),
        on_step=lambda _, state: states.append(state),
    )
    assert [int((state != 0).sum()) for state in states] == list(range(1, 17))
    # All at once, nothing is known of the others.
    alone = generate(Copies(process), process, AutoregressiveSampler(1, 60), labels, 0)
    assert (alone.flatten(1).std(1).mean() - 1).abs() < 0.1


# Settings


def test_network_in_half_precision_keeps_states_in_single(tiny):
    out = AutoregressiveSampler(4, head_steps=5)(
        tiny.bfloat16(), PROCESS, noise(), LABELS, Guidance(2.0)
    )
    assert out.dtype == torch.float32 and out.isfinite().all()


def test_more_iterations_than_tokens_are_refused_before_the_network_runs(tiny, monkeypatch):
    recorder = Recorder(tiny, monkeypatch)
    sampler = AutoregressiveSampler(17, head_steps=1)
    message = r"^sampler\.iterations=17, but the model has 16 token.*valid: 1 to 16"
    with pytest.raises(InputError, match=message):
        sampler.check(tiny)
    with pytest.raises(InputError, match=message):
        sampler(tiny, PROCESS, noise(), LABELS)
    assert not recorder.seen
    AutoregressiveSampler(16).check(tiny)


def test_process_of_another_kind_is_refused(tiny):
    with pytest.raises(InputError, match=r"kind 'masked'.*kind 'diffusion'"):
        AutoregressiveSampler(4)(tiny, GaussianDiffusion(), noise(), LABELS)


def test_head_steps_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"^sampler\.head_steps=1001: 1001 steps asked"):
        AutoregressiveSampler(4, head_steps=1001).num_steps(PROCESS)
    assert AutoregressiveSampler(4, head_steps="10,5").num_steps(PROCESS) == 4


@pytest.mark.parametrize(
    "setting",
    [
        {"iterations": 0},
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"guidance_schedule": "cosine"},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(InputError, match=rf"^sampler\.{name}='?{value}"):
        AutoregressiveSampler(**setting)


def test_guidance_by_noise_levels_is_refused_before_the_network_runs(tiny, monkeypatch):
    recorder = Recorder(tiny, monkeypatch)
    guidance = Guidance(1.5, interval=[0.1, 1.0])
    with pytest.raises(InputError, match=r"no noise level as a whole; give null"):
        AutoregressiveSampler(4)(tiny, PROCESS, noise(), LABELS, guidance)
    assert not recorder.seen
