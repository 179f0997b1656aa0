"""Scores on a fixed noised batch."""

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.metrics.held_out import HeldOutLoss, standard_error
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.masked import MaskedDiffusion


@pytest.fixture
def net():
    net = DiT(4, 2, 1, hidden_size=8, depth=4, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


@pytest.fixture
def held_out():
    images = torch.rand(20, 1, 4, 4) * 2 - 1
    return HeldOutLoss(GaussianDiffusion(), images, torch.arange(20) % 3, repeats=2, batch_size=7)


def test_same_batch_every_time_and_modes_restored(net, held_out):
    net.train()
    net.blocks[0].eval()  # a part that is frozen by hand stays so
    before = [module.training for module in net.modules()]
    assert held_out(net) == held_out(net)
    assert [module.training for module in net.modules()] == before

    def fail(*_):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        held_out.predict(net, fail)
    assert [module.training for module in net.modules()] == before


def test_batch_size_does_not_matter(net, held_out):
    ((_, batch),) = held_out.parts
    whole = HeldOutLoss(
        held_out.process, batch.clean[:20], held_out.conditioning[:20], repeats=2, batch_size=99
    )
    assert held_out(net)["loss"] == pytest.approx(whole(net)["loss"], rel=1e-5)


def test_loss_is_that_of_the_process(net, held_out):
    ((_, batch),) = held_out.parts
    with torch.no_grad():
        out = net(batch.noisy, batch.t, held_out.conditioning.labels)
    terms = held_out.process.loss(out, batch)
    scores = held_out(net)
    assert scores["loss"] == pytest.approx(float(terms["loss"].mean()), rel=1e-5)
    assert scores["loss_stderr"] == pytest.approx(float(terms["loss"].std() / 40**0.5), rel=1e-4)


def test_times_cover_the_schedule_evenly(held_out):
    times = held_out.parts[0][1].t.sort().values
    slices = (times * 40 // 1000).tolist()
    assert slices == list(range(40))


def test_distance_counts_noise_channels_only(net, held_out):
    out = held_out.predict(net)
    other = out.clone()
    other[:, 1:] += 5.0
    assert held_out.distance(out, other) == 0.0
    other[:, :1] += 0.5
    assert held_out.distance(out, other) == pytest.approx(0.25)


def test_masked_images_are_scored_under_shares_that_cover_their_range():
    process = MaskedDiffusion(patch_size=1, mask_ratio_min=0.25)
    images = torch.rand(20, 1, 4, 4) * 2 - 1
    fixed = HeldOutLoss(process, images, torch.arange(20) % 3, repeats=4)
    assert [rows.start for rows, _ in fixed.parts] == list(range(0, 80, 5))
    hidden = [batch.hidden.shape[1] for _, batch in fixed.parts]
    assert hidden == sorted(hidden) and hidden[0] <= 8 and hidden[-1] == 16
    net = MAR(4, 8, 2, 2, 2, in_channels=1, num_classes=3, head_depth=1, head_width=8)
    out = fixed.predict(net)
    parts = [process.loss(out[rows], batch)["loss"] for rows, batch in fixed.parts]
    assert fixed.of(out)["loss"] == pytest.approx(float(torch.cat(parts).mean()), rel=1e-6)


def test_one_sample_has_no_standard_error(recwarn):
    values = torch.tensor([[1.0, 3.0, 5.0]])
    assert standard_error(values).tolist() == [pytest.approx(2 / 3**0.5)]
    assert standard_error(values[:, :1]).isnan().tolist() == [True] and not recwarn.list
