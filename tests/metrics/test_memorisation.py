"""The memorisation check tells copies from new digits."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.data.digits import digit_split
from tinyfusion.errors import InputError
from tinyfusion.metrics.memorisation import nearer_than_heldout


def test_copies_of_training_images_are_flagged():
    train, _, heldout, _ = digit_split()
    copies = train[:200] + 0.01 * torch.randn(200, 1, 8, 8)
    shares = nearer_than_heldout(copies, train, heldout)
    assert shares["share_below_median"] == shares["share_below_p5"] == 1
    assert shares["samples_median"] < 0.2 < shares["heldout_p5"] < shares["heldout_median"]


def test_unseen_digits_are_not_flagged():
    train, _, heldout, _ = digit_split()
    shares = nearer_than_heldout(heldout[:148], train, heldout[148:])
    assert 0.4 < shares["share_below_median"] < 0.6
    assert shares["share_below_p5"] < 0.12


def test_noise_is_far_from_everything():
    train, _, heldout, _ = digit_split()
    shares = nearer_than_heldout(torch.rand(50, 1, 8, 8) * 2 - 1, train, heldout)
    assert shares["share_below_median"] == 0


def test_distances_are_euclidean_over_pixels_and_uint8_does_not_wrap():
    train = torch.tensor([[[[10, 250]]]], dtype=torch.uint8)
    samples = torch.tensor([[[[13, 254]]], [[[250, 250]]]], dtype=torch.uint8)
    heldout = torch.tensor([[[[10, 200]]]], dtype=torch.uint8)
    shares = nearer_than_heldout(samples, train, heldout)
    assert shares["heldout_median"] == pytest.approx(50)
    assert shares["samples_median"] == pytest.approx((5 + 240) / 2)
    assert shares["share_below_median"] == 0.5


@pytest.mark.parametrize(
    "samples, heldout, message",
    [
        (torch.zeros(0, 1, 8, 8), torch.zeros(3, 1, 8, 8), "samples holds no images"),
        (torch.zeros(3, 1, 8, 8), torch.zeros(0, 1, 8, 8), "heldout holds no images"),
        (torch.zeros(3, 1, 4, 8), torch.zeros(3, 1, 8, 8), r"samples are.*\(1, 4, 8\)"),
        (torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8).byte(), "heldout are torch.uint8"),
    ],
)
def test_sets_that_do_not_fit_are_refused(samples, heldout, message):
    with pytest.raises(InputError, match=message):
        nearer_than_heldout(samples, torch.zeros(4, 1, 8, 8), heldout)
