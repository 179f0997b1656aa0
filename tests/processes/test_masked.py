from __future__ import annotations

import math

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.tokens import patchify, unpatchify
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import NoisyBatch
from tinyfusion.processes.masked import MaskedBatch, MaskedDiffusion
from tinyfusion.seeding import FixedDraws, Rows, StepDraws, StepNoise

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class FixedRatio(StepDraws):
    """Draws whose shared value is given."""

    def shared(self, purpose: str) -> float:
        return 0.5


def draws(count: int, step: int = 0, first: int = 0, kind=StepDraws):
    rows = Rows(step=step, first=first, count=count)
    return kind(StepNoise(0, "test"), rows, torch.device("cpu"))


@pytest.fixture(scope="module")
def numbers(golden):
    return golden("mar")


@pytest.fixture
def tiny() -> MAR:
    net = MAR(
        input_size=4,
        hidden_size=16,
        encoder_depth=1,
        decoder_depth=1,
        num_heads=2,
        patch_size=2,
        in_channels=1,
        num_classes=3,
        buffer_size=2,
        head_depth=1,
        head_width=16,
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def mask_of(batch: MaskedBatch) -> torch.Tensor:
    """True where a token is hidden, shape (B, T)."""
    return torch.zeros_like(batch.t[:, 0], dtype=torch.bool).scatter(1, batch.hidden, True)


def golden_batch(process: MaskedDiffusion, numbers) -> MaskedBatch:
    hidden = numbers["orders"][:, : int(numbers["num_masked"])]
    t, noise = numbers["diffloss.t"].view(3, 1, 16), numbers["diffloss.noise"].view(3, 1, 16, 8)
    return process.add_noise(numbers["latents"], hidden, t, noise)


# Tokens


def test_tokens_are_cut_as_published(numbers):
    assert torch.equal(patchify(numbers["latents"], 1), numbers["tokens"])


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_entries_of_a_token_are_channel_row_column(patch_size):
    x = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
    tokens = patchify(x, patch_size)
    side = 6 // patch_size
    assert tokens.shape == (2, side**2, 3 * patch_size**2)
    rows = slice(patch_size, 2 * patch_size)
    # The first token of the second row of tokens.
    assert torch.equal(tokens[1, side], x[1, :, rows, :patch_size].flatten())
    assert torch.equal(unpatchify(tokens, patch_size), x)


# Loss against the published code


def test_mask_and_noised_tokens_match_golden(numbers):
    batch = golden_batch(MaskedDiffusion(), numbers)
    assert torch.equal(mask_of(batch), numbers["mask"].bool())
    clean, hidden, noisy, t = batch.inputs
    assert torch.equal(clean, numbers["latents"]) and torch.equal(hidden, batch.hidden)
    torch.testing.assert_close(noisy.view(48, 8), numbers["diffloss.x_t"], **CLOSE)
    assert torch.equal(t.flatten(), numbers["diffloss.t"])


def test_schedules_match_golden(numbers):
    diffusion = MaskedDiffusion().diffusion
    torch.testing.assert_close(
        diffusion.alphas_cumprod_S, numbers["f64.diffloss.alphas_cumprod"], rtol=1e-10, atol=0
    )
    assert torch.equal(diffusion.respaced(10).time_map_S, numbers["diffloss.gen_timestep_map"])


def test_loss_per_token_matches_golden(numbers, golden_mar):
    process = MaskedDiffusion()
    batch = golden_batch(process, numbers)
    with torch.no_grad():
        out = golden_mar(*batch.inputs, numbers["labels"])
    names = {"mse": "mse", "vb": "vb", "loss": "per_token"}
    # Every token, hidden or not, as the published code computes them.
    data = (batch.tokens, batch.noise, batch.noisy)
    flat = NoisyBatch(*(each.reshape(48, 8) for each in data), *[batch.t.flatten()] * 2)
    for name, terms in process.diffusion.loss(out.view(48, 16), flat).items():
        torch.testing.assert_close(terms, numbers[f"diffloss.{names[name]}"], **CLOSE)
    # Hidden ones alone, averaged.
    mask = numbers["mask"].double()
    terms = process.loss(out, batch)
    assert set(terms) == {"mse", "vb", "loss"}
    for name, found in terms.items():
        tokens = numbers[f"diffloss.{names[name]}"].view(3, 16).double()
        expected = (tokens * mask).sum(1) / mask.sum(1)
        torch.testing.assert_close(found.double(), expected, **CLOSE)
    torch.testing.assert_close(terms["loss"].mean(), numbers["diffloss.value"], **CLOSE)


def test_gradients_match_golden(numbers, golden_mar):
    process = MaskedDiffusion()
    batch = golden_batch(process, numbers)
    process.loss(golden_mar(*batch.inputs, numbers["labels"]), batch)["loss"].mean().backward()
    parameters = dict(golden_mar.named_parameters())
    names = [key.removeprefix("grad.") for key in numbers if key.startswith("grad.")]
    assert len(names) == 6
    for name in names:
        expected = numbers[f"grad.{name}"]
        torch.testing.assert_close(parameters[name].grad, expected, rtol=1e-3, atol=1e-6)


# Laws of the loss


def test_tokens_in_sight_do_not_count():
    process = MaskedDiffusion(patch_size=2, mask_ratio_min=0.2, mask_ratio_std=0.5)
    batch = process.corrupt(torch.randn(5, 1, 4, 4), draws(5, kind=FixedRatio))
    out = torch.randn(5, 4, 4, 8)
    before = process.loss(out, batch), process.distillation_loss(out, out + 1, batch, True)
    seen = ~mask_of(batch)
    assert seen.any()
    spoilt = out.masked_fill(seen[:, None, :, None], math.nan)
    after = process.loss(spoilt, batch), process.distillation_loss(spoilt, out + 1, batch, True)
    for one, other in zip(before, after, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name]) and one[name].isfinite().all()


def test_every_repeat_counts():
    process = MaskedDiffusion(patch_size=2)
    batch = process.corrupt(torch.randn(2, 1, 4, 4), draws(2))
    out = batch.noise.clone()
    out[1, 2] += 2.0
    torch.testing.assert_close(process.loss(out, batch)["loss"], torch.tensor([0.0, 4.0 / 4]))


def test_teacher_equal_to_student_costs_no_noise_distance():
    process = MaskedDiffusion(patch_size=2)
    batch = process.corrupt(torch.randn(2, 1, 4, 4), draws(2))
    out = torch.randn(2, 4, 4, 8)
    terms = process.distillation_loss(out, out, batch, variance=False)
    assert set(terms) == {"kd_mse", "kd"} and terms["kd"].tolist() == [0.0, 0.0]


def test_distillation_is_the_heads_over_the_hidden_tokens():
    process = MaskedDiffusion(patch_size=2, head_repeats=2)
    batch = process.corrupt(torch.randn(3, 1, 4, 4), draws(3))
    student, teacher = torch.randn(2, 3, 2, 4, 8)
    terms = process.distillation_loss(student, teacher, batch, variance=True)
    distance = (student - teacher)[..., :4].square().mean(-1)
    for sample in range(3):
        expected = distance[sample][:, mask_of(batch)[sample]].mean()
        torch.testing.assert_close(terms["kd_mse"][sample], expected)
    torch.testing.assert_close(terms["kd"], terms["kd_mse"] + terms["kd_vb"])
    # The variances have a say in the second term, the students' noise has no gradient there.
    moved = student.clone().requires_grad_()
    process.distillation_loss(moved, teacher, batch, True)["kd_vb"].sum().backward()
    assert moved.grad[..., :4].abs().max() == 0 and moved.grad[..., 4:].abs().max() > 0


def test_head_without_variance_has_no_bound():
    assert MaskedDiffusion.learns_variance
    process = MaskedDiffusion(patch_size=2)
    batch = process.corrupt(torch.randn(2, 1, 4, 4), draws(2))
    assert set(process.loss(torch.zeros(2, 4, 4, 4), batch)) == {"mse", "loss"}


# Draws


@pytest.mark.parametrize("uniform", [0.0, 1e-9, 0.25, 0.5, 0.9, 1 - 2**-53])
def test_mask_ratio_inverts_the_truncated_normal(uniform):
    ratio = MaskedDiffusion().mask_ratio(uniform)
    assert 0.7 <= ratio <= 1

    def cdf(x: float) -> float:
        return 0.5 * (1 + math.erf((x - 1) / 0.25 / math.sqrt(2)))

    share = (cdf(ratio) - cdf(0.7)) / (cdf(1.0) - cdf(0.7))
    assert share == pytest.approx(uniform, abs=1e-9)


@pytest.mark.parametrize(
    "lowest, deviation", [(1.0, 0.25), (0.7, 1e-6), (0.7, 1e6), (1e-3, 0.01), (0.7, 0.003)]
)
def test_mask_ratio_stays_in_range_where_the_tail_is_empty(lowest, deviation):
    process = MaskedDiffusion(mask_ratio_min=lowest, mask_ratio_std=deviation)
    ratios = [process.mask_ratio(u) for u in (0.0, 1e-300, 0.5, 1 - 2**-53)]
    assert all(lowest <= ratio <= 1 for ratio in ratios) and ratios == sorted(ratios)


def test_number_of_hidden_tokens_is_rounded_up_and_shared():
    process = MaskedDiffusion()
    found = set()
    for step in range(40):
        batch = process.corrupt(torch.randn(3, 2, 4, 4), draws(3, step))
        ratio = process.mask_ratio(draws(3, step).shared("mask_ratio"))
        assert mask_of(batch).sum(1).tolist() == [math.ceil(16 * ratio)] * 3
        found.add(math.ceil(16 * ratio))
    assert found == {12, 13, 14, 15, 16}


def test_the_first_tokens_of_a_drawn_order_are_hidden():
    batch = MaskedDiffusion().corrupt(torch.randn(3, 2, 4, 4), draws(3, kind=FixedRatio))
    order = draws(3).uniform("order", 16).argsort(1)
    # Half way through the distribution: a share of 0.874.
    assert torch.equal(batch.hidden, order[:, :14])


def test_parts_of_fixed_data_cover_the_mask_ratios():
    process, fixed = MaskedDiffusion(), FixedDraws(32, 0, "held_out")
    size = 32 // process.strata
    parts = [fixed.part(slice(first, first + size)) for first in range(0, 32, size)]
    found = {process.corrupt(torch.zeros(size, 1, 4, 4), part).hidden.shape[1] for part in parts}
    assert found == {12, 13, 14, 15, 16}


def test_tokens_are_hidden_equally_often():
    process = MaskedDiffusion()
    batch = process.corrupt(torch.randn(4000, 1, 4, 4), draws(4000, kind=FixedRatio))
    count = mask_of(batch)[0].sum()
    share = mask_of(batch).float().mean(0)
    assert 0 < count < 16
    assert (share - count / 16).abs().max() < 0.03
    # Samples hide tokens of their own, and none of them twice.
    assert len(mask_of(batch).unique(dim=0)) > 100
    assert (mask_of(batch).sum(1) == batch.hidden.shape[1]).all()


def test_noised_tokens_have_times_and_noise_of_their_own():
    process = MaskedDiffusion(patch_size=2, num_steps=50)
    clean = torch.randn(64, 1, 4, 4)
    batch = process.corrupt(clean, draws(64))
    assert batch.t.shape == (64, 4, 4) and batch.noise.shape == (64, 4, 4, 4)
    assert batch.t.min() == 0 and batch.t.max() == 49
    kept = process.diffusion.alphas_cumprod_S[batch.t][..., None].float()
    expected = kept.sqrt() * patchify(clean, 2)[:, None] + (1 - kept).sqrt() * batch.noise
    torch.testing.assert_close(batch.noisy, expected)


def test_micro_batches_see_the_rows_of_the_whole_batch():
    process, clean = MaskedDiffusion(patch_size=2), torch.randn(6, 1, 4, 4)
    whole = process.corrupt(clean, draws(6))
    part = process.corrupt(clean[2:4], draws(2, first=2))
    for all_rows, rows in zip(whole.inputs, part.inputs, strict=True):
        assert torch.equal(all_rows[2:4], rows)


# Refusals


def test_networks_of_another_kind_or_patch_size_are_refused(tiny):
    MaskedDiffusion(patch_size=2).check(tiny)
    with pytest.raises(InputError, match=r"net.pt has patch_size=2, but process.patch_size=1"):
        MaskedDiffusion().check(tiny, "net.pt")
    other = DiT(input_size=4, hidden_size=16, depth=1, num_heads=2, patch_size=2)
    with pytest.raises(InputError, match="kind 'diffusion'"):
        MaskedDiffusion(patch_size=2).check(other)


@pytest.mark.parametrize(
    "setting",
    [
        {"patch_size": 0},
        {"head_repeats": 0},
        {"mask_ratio_min": 0.0},
        {"mask_ratio_min": 1.1},
        {"mask_ratio_min": math.nan},
        {"mask_ratio_std": 0.0},
        {"mask_ratio_std": math.inf},
        {"num_steps": 0},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(InputError, match=rf"{name}.*{value}"):
        MaskedDiffusion(**setting)
