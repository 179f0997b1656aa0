from __future__ import annotations

import math

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.errors import InputError
from tinyfusion.processes.contract import batch_means
from tinyfusion.processes.gaussian import (
    GaussianDiffusion,
    NoisyBatch,
)
from tinyfusion.processes.likelihood import discretised_log_likelihood, gaussian_kl
from tinyfusion.processes.respacing import respaced_times

RESPACINGS = ["10", "64", "250", "ddim10", "ddim50"]


@pytest.fixture(scope="module")
def numbers(golden):
    return golden("ddpm")


@pytest.fixture
def net(golden) -> DiT:
    tensors = golden("dit")
    net = DiT(input_size=8, hidden_size=48, depth=4, num_heads=4, num_classes=10)
    net.load_state_dict({k[3:]: v for k, v in tensors.items() if k.startswith("sd.")})
    return net.eval()


def train_batch(process: GaussianDiffusion, numbers) -> NoisyBatch:
    return process.add_noise(*(numbers[f"train.{name}"] for name in ("x_start", "t", "noise")))


# Schedules


def test_schedule_matches_golden(numbers):
    process = GaussianDiffusion()
    exact = {"rtol": 1e-10, "atol": 0}
    torch.testing.assert_close(process.betas_S, numbers["f64.betas"], **exact)
    torch.testing.assert_close(process.alphas_cumprod_S, numbers["f64.alphas_cumprod"], **exact)


@pytest.mark.parametrize("name", RESPACINGS)
def test_respaced_schedule_matches_golden(numbers, name):
    chain = GaussianDiffusion().respaced(name)
    exact = {"rtol": 1e-10, "atol": 0}
    assert torch.equal(chain.time_map_S, numbers[f"timestep_map.{name}"])
    torch.testing.assert_close(chain.betas_S, numbers[f"f64.betas.{name}"], **exact)
    torch.testing.assert_close(
        chain.alphas_cumprod_S, numbers[f"f64.alphas_cumprod.{name}"], **exact
    )


def test_respacing_to_every_step_changes_nothing():
    process = GaussianDiffusion(num_steps=20)
    chain = process.respaced(20)
    assert chain.time_map_S.tolist() == list(range(20))
    torch.testing.assert_close(chain.betas_S, process.betas_S, rtol=1e-12, atol=0)


def test_respacing_keeps_the_setting_and_maps_to_training_times():
    chain = GaussianDiffusion(clip=True).respaced("ddim50")
    assert chain.clip and chain.num_steps == 50
    assert chain.network_time(torch.tensor([0, 1, 49])).tolist() == [0, 20, 980]
    # Respacing twice still leads to the times of the full chain.
    assert chain.respaced("ddim5").network_time(torch.arange(5)).tolist() == [
        0,
        200,
        400,
        600,
        800,
    ]


def test_comma_list_spends_its_counts_section_by_section():
    times = respaced_times("2,3,1", 30)
    assert times == [0, 9, 10, 14, 19, 20]
    # Sections that do not divide evenly: the first ones are longer by one.
    assert respaced_times("1,1,2", 11) == [0, 4, 8, 10]


def test_a_single_step_is_possible():
    chain = GaussianDiffusion().respaced(1)
    assert chain.time_map_S.tolist() == [0]
    step = chain.reverse_step(torch.zeros(1, 2, 2, 2), torch.ones(1, 1, 2, 2), torch.tensor([0]))
    assert step.log_variance.isfinite().all()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (0, "can't be read"),
        (-5, "can't be read"),
        ("", "can't be read"),
        ("fast", "can't be read"),
        ("10,,5", "can't be read"),
        ("ddim", "can't be read"),
        (2.5, "can't be read"),
        (None, "can't be read"),
        (1001, "1 to 1000"),
        ("10,600", "section of 500"),
        ("ddim999", "no integer stride"),
    ],
)
def test_bad_respacing_is_refused_with_its_value(spec, said):
    with pytest.raises(InputError, match=said) as caught:
        GaussianDiffusion().respaced(spec)
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize("setting", [{"num_steps": 0}, {"beta_start": 0.0}, {"beta_end": 1.0}])
def test_bad_schedule_is_refused(setting):
    with pytest.raises(InputError, match=r"num_steps of 1 to 1000000 and 0 < beta_start"):
        GaussianDiffusion(**setting)


def test_times_from_uniform_cover_the_chain_evenly():
    process = GaussianDiffusion()
    uniform = (torch.arange(4000) + 0.5) / 4000
    counts = process.times_from_uniform(uniform).bincount(minlength=1000)
    assert counts.tolist() == [4] * 1000
    largest = torch.tensor([1.0 - 2**-24])
    assert process.times_from_uniform(largest).tolist() == [999]


# Losses


def test_training_losses_match_golden(numbers, net):
    process = GaussianDiffusion()
    batch = train_batch(process, numbers)
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(batch.noisy, numbers["train.x_t"], **tolerance)
    terms = process.loss(net(batch.noisy, batch.t, numbers["train.y"]), batch)
    assert (batch.t == 0).any(), "the golden batch should hold the decoder's step"
    for name in ("mse", "vb", "loss"):
        torch.testing.assert_close(terms[name], numbers[f"train.{name}"], **tolerance)


def test_training_gradients_match_golden(numbers, net):
    process = GaussianDiffusion()
    batch = train_batch(process, numbers)
    terms = batch_means(process.loss(net(batch.noisy, batch.t, numbers["train.y"]), batch))
    terms["loss"].backward()
    names = [key[len("train.grad.") :] for key in numbers if key.startswith("train.grad.")]
    assert names
    for name in names:
        torch.testing.assert_close(
            net.get_parameter(name).grad, numbers[f"train.grad.{name}"], rtol=1e-3, atol=1e-6
        )


def test_variance_term_sends_no_gradient_to_the_noise():
    process = GaussianDiffusion()
    out = torch.randn(3, 4, 4, 4, requires_grad=True)
    batch = process.add_noise(
        torch.rand(3, 2, 4, 4), torch.tensor([0, 10, 900]), torch.randn(3, 2, 4, 4)
    )
    process.loss(out, batch)["vb"].sum().backward()
    assert torch.equal(out.grad[:, :2], torch.zeros(3, 2, 4, 4))
    # At t = 0 the value channels act too, through the likelihood.
    assert (out.grad[1:, 2:].abs().amax(dim=(1, 2, 3)) > 0).all()


def test_loss_without_learned_variance_is_the_squared_error():
    process = GaussianDiffusion()
    batch = process.add_noise(
        torch.rand(2, 1, 4, 4), torch.tensor([0, 999]), torch.ones(2, 1, 4, 4)
    )
    terms = process.loss(torch.zeros(2, 1, 4, 4), batch)
    assert set(terms) == {"mse", "loss"}
    assert terms["loss"].tolist() == [1.0, 1.0]


def test_output_of_another_width_is_refused():
    with pytest.raises(InputError, match=r"3 channels.*2 channels: 2 or 4"):
        GaussianDiffusion().split(torch.zeros(1, 3, 4, 4), 2)


def test_distillation_vanishes_for_equal_networks_but_for_the_decoder_step():
    process = GaussianDiffusion()
    out = 0.1 * torch.randn(2, 4, 4, 4)
    batch = process.add_noise(
        torch.rand(2, 2, 4, 4), torch.tensor([1, 800]), torch.randn(2, 2, 4, 4)
    )
    terms = process.distillation_loss(out, out, batch, variance=True)
    assert terms["kd_mse"].tolist() == [0.0, 0.0]
    torch.testing.assert_close(terms["kd_vb"], torch.zeros(2), rtol=0, atol=1e-5)
    other = process.distillation_loss(out + 0.5, out, batch, variance=True)
    torch.testing.assert_close(other["kd_mse"], torch.full((2,), 0.25))
    assert (other["kd_vb"] > 1e-4).all()
    torch.testing.assert_close(other["kd"], other["kd_mse"] + other["kd_vb"])
    assert "kd_vb" not in process.distillation_loss(out, out, batch, variance=False)


# Reverse steps and likelihoods


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("item", "steps"), [("pmv", 1000), ("pmv10", 10)])
def test_reverse_step_matches_golden(numbers, net, item, steps, clip):
    chain = GaussianDiffusion(clip=clip).respaced(steps)
    t, x = numbers[f"{item}.t"], numbers["pmv.x_t"]
    with torch.no_grad():
        step = chain.reverse_step(net(x, chain.network_time(t), numbers["pmv.y"]), x, t)
    prefix = f"{item}.clip{int(clip)}"
    for ours, theirs in (
        ("mean", "mean"),
        ("variance", "variance"),
        ("log_variance", "log_variance"),
    ):
        torch.testing.assert_close(
            getattr(step, ours), numbers[f"{prefix}.{theirs}"], rtol=1e-4, atol=1e-5
        )
    expected = numbers[f"{prefix}.pred_xstart"]
    # The network rounds its output by 2e-6, other processors otherwise; here that counts as often
    # as its noise weighs more than the image: 157 times at the noisiest step.
    kept = chain.alphas_cumprod_S[t].float().view(-1, 1, 1, 1)
    allowed = 1e-4 + 1e-4 * expected.abs() + 2e-6 * (1 / kept - 1).sqrt()
    assert ((step.clean - expected).abs() <= allowed).all()


def test_argument_clip_wins_over_the_setting():
    process = GaussianDiffusion(clip=True)
    x, t = torch.full((1, 1, 2, 2), 5.0), torch.tensor([0])
    out = torch.zeros(1, 1, 2, 2)
    assert process.reverse_step(out, x, t).clean.max() == 1
    assert process.reverse_step(out, x, t, clip=False).clean.min() > 4


def test_fixed_variance_is_beta_away_from_the_last_step():
    process = GaussianDiffusion()
    t = torch.tensor([1, 500])
    step = process.reverse_step(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2), t)
    torch.testing.assert_close(step.variance[:, 0, 0, 0], process.betas_S[t].float())


def test_noise_and_clean_data_are_inverse_to_each_other():
    process = GaussianDiffusion()
    t = torch.tensor([0, 300, 999])
    clean, noise = torch.rand(3, 1, 4, 4).double(), torch.randn(3, 1, 4, 4).double()
    noisy = process.add_noise(clean, t, noise).noisy
    torch.testing.assert_close(process.clean_from_noise(noisy, t, noise), clean)
    torch.testing.assert_close(process.noise_from_clean(noisy, t, clean), noise)


def test_posterior_agrees_with_bayes_rule():
    """q(x_{t-1} | x_t, x_0) from the product of two Gaussians, worked out independently."""
    process = GaussianDiffusion()
    t = 400
    clean, noisy = 0.3, -0.7
    beta, kept = process.betas_S[t].item(), process.alphas_cumprod_S[t - 1].item()
    precision = (1 - beta) / beta + 1 / (1 - kept)
    mean = (math.sqrt(1 - beta) * noisy / beta + math.sqrt(kept) * clean / (1 - kept)) / precision
    ours, log_variance = process.posterior(
        torch.tensor([[clean]], dtype=torch.float64),
        torch.tensor([[noisy]], dtype=torch.float64),
        torch.tensor([t]),
    )
    assert ours.item() == pytest.approx(mean, rel=1e-9)
    assert log_variance.exp().item() == pytest.approx(1 / precision, rel=1e-9)


def test_kl_matches_torch():
    a, b, c, d = torch.randn(4, 5)
    ours = gaussian_kl(a, 2 * b, c, 2 * d)
    first = torch.distributions.Normal(a, b.exp())
    second = torch.distributions.Normal(c, d.exp())
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(first, second))


def test_likelihoods_of_all_levels_sum_to_one():
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, log_std in ((0.0, -2.0), (-0.97, -3.0), (1.3, -1.0)):
        spread = torch.full_like(levels, log_std)
        log_likelihood = discretised_log_likelihood(levels, torch.full_like(levels, mean), spread)
        assert log_likelihood.exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_likelihood_is_clamped_far_from_the_mean():
    x, mean = torch.tensor([0.0]), torch.tensor([0.9])
    value = discretised_log_likelihood(x, mean, torch.tensor([-6.0])).item()
    assert value == pytest.approx(math.log(1e-12), rel=1e-5)
