"""FID, inception score, precision and recall on digits: laws, planted cases, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tinyfusion.data.digits import digit_split
from tinyfusion.data.image_sets import TensorImages
from tinyfusion.errors import InputError
from tinyfusion.metrics.classifier import load_digits_classifier
from tinyfusion.metrics.features import extract, load_extractor
from tinyfusion.metrics.fidelity import (
    Statistics,
    fidelity,
    frechet_distance,
    inception_score,
    subsample,
)
from tinyfusion.metrics.fidelity import real_halves_fid as halves_fid


def as_uint8(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """600 real digits, uint8."""
    return as_uint8(digit_split()[0][:600])


def real_halves_fid(images: Tensor, seed: int) -> float:
    return halves_fid(extract(TensorImages(images), "tinyfusion-digits")["features"], seed)


def frechet_by_symmetric_roots(first: Tensor, second: Tensor) -> float:
    """Independent float64 route: tr sqrt(S1 S2) = tr sqrt(R S2 R) with R = sqrt(S1), symmetric."""
    covariance_1, covariance_2 = torch.cov(first.T), torch.cov(second.T)
    values, vectors = torch.linalg.eigh(covariance_1)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    inner = torch.linalg.eigvalsh(root @ covariance_2 @ root).clamp(min=0).sqrt().sum()
    distance = (first.mean(0) - second.mean(0)).square().sum()
    return (distance + covariance_1.trace() + covariance_2.trace() - 2 * inner).item()


def test_identical_sets_are_at_distance_zero_and_fully_covered(digits):
    scores = fidelity(digits, digits)
    assert set(scores) == {"fid", "sfid", "inception_score", "precision", "recall"}
    assert scores["fid"] == pytest.approx(0, abs=1e-6)
    assert scores["sfid"] == pytest.approx(0, abs=1e-6)
    assert scores["precision"] == scores["recall"] == 1


def test_fid_grows_with_a_planted_blend_towards_noise(digits):
    noise = torch.randint(0, 256, digits.shape, dtype=torch.uint8)
    blends = [
        ((1 - share) * digits + share * noise).round().to(torch.uint8) for share in (0, 0.2, 0.5, 1)
    ]
    fids = [fidelity(blend, digits)["fid"] for blend in blends]
    assert fids == sorted(fids)
    assert fids[-1] > 20 * real_halves_fid(digits, seed=0)


def test_fid_matches_an_independent_formula(digits):
    samples, reference = digits[:250], digits[250:]
    net = load_digits_classifier().double()
    features = [net.features(part.double() / 127.5 - 1) for part in (samples, reference)]
    expected = frechet_by_symmetric_roots(*features)
    assert expected > 0
    # The root of a nearly singular product carries the square root of the rounding error.
    assert fidelity(samples, reference)["fid"] == pytest.approx(expected, rel=1e-5)


def test_inception_score_matches_its_formula_and_sees_collapse(digits):
    net = load_digits_classifier().double()
    probabilities = net(digits.double() / 127.5 - 1).softmax(-1)
    divergence = probabilities * (probabilities / probabilities.mean(0)).log()
    expected = divergence.sum(1).mean().exp().item()
    assert fidelity(digits, digits)["inception_score"] == pytest.approx(expected, rel=1e-6)
    one_image = digits[:1].repeat(50, 1, 1, 1)
    assert fidelity(one_image, digits)["inception_score"] == pytest.approx(1, abs=1e-6)


def test_collapsed_samples_are_precise_and_recall_little(digits):
    collapsed = digits[:5].repeat(40, 1, 1, 1)
    scores = fidelity(collapsed, digits)
    assert scores["precision"] > 0.99
    assert scores["recall"] < 0.05
    swapped = fidelity(digits, collapsed)
    assert swapped["precision"] < 0.05
    assert swapped["recall"] > 0.99


def test_more_neighbours_widen_the_balls(digits):
    samples, reference = digits[:300], digits[300:]
    near = fidelity(samples, reference, neighbours=1)
    far = fidelity(samples, reference, neighbours=8)
    assert near["precision"] < far["precision"]
    assert near["recall"] < far["recall"]


def test_splits_are_consecutive_and_averaged(digits):
    def of(images, **options):
        return fidelity(images, digits, **options)["inception_score"]

    assert of(digits) == of(digits, split_size=600)
    parts = [of(part) for part in digits.split(250)]
    assert [len(part) for part in digits.split(250)] == [250, 250, 100]
    # The last, smaller part counts as much as the others, as in ADM's evaluator.
    assert of(digits, split_size=250) == pytest.approx(sum(parts) / 3)
    assert sum(parts) / 3 < of(digits)  # fewer images have more uneven classes


def test_spatial_features_see_what_pooled_ones_do_not(digits):
    """Means over places are all that is pooled here: moved content is the same to them."""
    maps = torch.rand(60, 4, 4, 7, generator=torch.Generator().manual_seed(0)).double()
    maps[:, 0] += 1
    moved = maps.flip(1)
    pooled, spatial = (
        [Statistics.of(at(part)) for part in (maps, moved)]
        for at in (lambda x: x.mean((1, 2)), lambda x: x.flatten(1))
    )
    assert frechet_distance(*pooled) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(*spatial) > 10


def test_grey_images_suit_an_extractor_of_colour_images(digits):
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class MeanColour(FeatureExtractorBase):
        def forward(self, input):
            assert input.shape[1] == 3
            return (input.double().mean((2, 3)),) * len(self.features_list)

        @staticmethod
        def get_provided_features_list():
            return ("mean",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "mean"

        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

    register_feature_extractor("test-mean-colour", MeanColour)
    scores = fidelity(digits[:50], digits[50:100], extractor="test-mean-colour")
    # Three equal channels of variance v: the covariance is singular with one root each.
    means = digits[:100].double().mean((1, 2, 3))
    first, second = means[:50], means[50:]
    expected = 3 * (first.mean() - second.mean()) ** 2 + 3 * (first.std() - second.std()) ** 2
    assert scores["fid"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)


def test_scoring_leaves_the_global_generator_alone(digits):
    state = torch.get_rng_state()
    fidelity(digits[:50], digits[:50])
    assert torch.equal(state, torch.get_rng_state())


def test_halves_of_real_data_give_a_seeded_floor_far_below_noise(digits):
    floor = real_halves_fid(digits, seed=1)
    assert floor == real_halves_fid(digits, seed=1) != real_halves_fid(digits, seed=2)
    noise = torch.randint(0, 256, digits.shape, dtype=torch.uint8)
    assert 0 < floor < 0.1 * fidelity(noise, digits)["fid"]
    order_free = real_halves_fid(digits[:599], seed=1)
    assert order_free > 0


def test_subsample_draws_distinct_images_by_seed():
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1)
    drawn = subsample(images, 7, seed=1)
    assert drawn.flatten().unique().numel() == 7
    assert torch.equal(drawn, subsample(images, 7, seed=1))
    assert not torch.equal(drawn, subsample(images, 7, seed=2))
    assert torch.equal(subsample(images, 20).flatten().sort().values, images.flatten())
    for count in (0, 21):
        with pytest.raises(InputError, match=f"count must be between 1 and 20.*{count}"):
            subsample(images, count)


GOOD = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    "samples, reference, options, message",
    [
        (GOOD.float(), GOOD, {}, "samples must be uint8.*float32"),
        (GOOD, GOOD.float(), {}, "reference must be uint8.*float32"),
        (GOOD[0], GOOD, {}, r"samples must have shape \(N, C, H, W\)"),
        (GOOD[..., :6], GOOD, {}, "1x8x6.*1x8x8.*same channels and size"),
        (GOOD.expand(-1, 3, -1, -1), GOOD, {}, "3x8x8.*1x8x8"),
        (GOOD.expand(-1, 3, -1, -1), GOOD.expand(-1, 3, -1, -1), {}, "3x8x8.*takes 1x8x8"),
        (GOOD[..., :6], GOOD[..., :6], {}, "1x8x6.*takes 1x8x8"),
        (GOOD[:3], GOOD, {}, "samples: 3 images are too few, neighbours=3"),
        (GOOD, GOOD[:3], {}, "reference: 3 images are too few, neighbours=3"),
        (GOOD[:0], GOOD, {}, "samples: 0 images"),
        (GOOD, GOOD, {"split_size": 11}, "is_split_size=11: valid for 10 samples are 1 to 10"),
        (GOOD, GOOD, {"split_size": 0}, "is_split_size=0: valid for 10 samples"),
        (GOOD, GOOD, {"neighbours": 0}, "neighbours=0 must be at least 1"),
        (GOOD, GOOD, {"extractor": "nope"}, "'nope' is not registered; known:.*tinyfusion-digits"),
        (
            GOOD.expand(-1, 2, -1, -1),
            GOOD.expand(-1, 2, -1, -1),
            {"extractor": "inception-v3-compat"},
            "2x8x8.*takes 3 channels",
        ),
    ],
)
def test_bad_input_is_named(samples, reference, options, message):
    with pytest.raises(InputError, match=message) as caught:
        fidelity(samples, reference, **options)
    assert "\n" not in str(caught.value)


def test_halves_of_too_few_images_are_refused():
    with pytest.raises(InputError, match="at least 4 images, got 3"):
        halves_fid(torch.zeros(3, 2), seed=0)


def test_more_than_five_thousand_samples_are_split() -> None:
    logits = torch.randn(5500, 10, generator=torch.Generator().manual_seed(0))
    parts = [inception_score(part) for part in (logits[:5000], logits[5000:])]
    assert inception_score(logits) == pytest.approx(sum(parts) / 2)
    assert inception_score(logits) != pytest.approx(inception_score(logits, 5500))


def test_features_that_are_infinite_are_refused_with_the_image_s_number(digits, monkeypatch):
    net = load_extractor("tinyfusion-digits")
    forward = type(net).forward

    def broken(self, images):
        out = forward(self, images)
        if len(images) == 3:
            out[0][1] = float("inf")
        return out

    monkeypatch.setattr(type(net), "forward", broken)
    with pytest.raises(InputError, match=r"images: the features .* of image 21 are not finite"):
        extract(TensorImages(digits[:23]), "tinyfusion-digits", batch_size=10)
