"""How close samples are to real images: FID, sFID, inception score, precision and recall.

The conventions are those of ADM's evaluator (arXiv 2105.05233, guided-diffusion); what is computed
from features is torch-fidelity's (0.4.0 or later, earlier ones swap precision and recall), in
float64 for FID and sFID. FID falls with the number of samples even between sets of one
distribution, so compare figures of equal counts only, beside the floor that
:func:`real_halves_fid` gives. :func:`subsample` makes counts equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinyfusion.data.image_sets import ImageSet, TensorImages
from tinyfusion.errors import InputError
from tinyfusion.metrics.features import DIGITS_EXTRACTOR, Features, check_input, extract, layers
from tinyfusion.seeding import generator

SPLIT_SIZE = 5000
"""Samples per inception score; of more samples, the scores of parts of this size are averaged."""

_PAIRS_AT_ONCE = 2000
"""Rows of the distance matrices that precision and recall hold at a time."""


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features: all that FID and sFID know of a set of images.

    Attributes:
        mu: float64, shape (D,).
        sigma: unbiased covariance, float64, shape (D, D).
    """

    mu: np.ndarray
    sigma: np.ndarray

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Statistics of features of shape (N, D), N >= 2."""
        from torch_fidelity.metric_fid import fid_features_to_statistics

        found = fid_features_to_statistics(features.double())
        return cls(found["mu"], np.atleast_2d(found["sigma"]))


@dataclass(frozen=True)
class Reference:
    """What is known of real images.

    Attributes:
        statistics: by metric, ``fid`` and ``sfid``, as far as they are known.
        features: features (N, D) of real images by layer; empty if only statistics are known.
        larger: whether statistics are of more images than the features.
    """

    statistics: dict[str, Statistics]
    features: Features
    larger: bool = False

    @classmethod
    def of(cls, features: Features, extractor: str) -> Reference:
        """The reference that some real images make."""
        named = {name: layer for name, layer in layers(extractor).items() if "fid" in name}
        return cls({name: Statistics.of(features[at]) for name, at in named.items()}, features)


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Fréchet distance of two normal distributions, in float64.

    ``|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr sqrt(S1 S2)``, the last trace being the sum of the
    roots of the product's eigenvalues: rounding that makes some of them negative or complex adds
    nothing to its real part, so singular covariances (fewer samples than features) do no harm.

    Args:
        first: statistics of one set.
        second: statistics of another one, of the same features.

    Raises:
        InputError: features of different numbers.

    Source: arXiv 1706.08500; torch-fidelity.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    if first.mu.shape != second.mu.shape:
        raise InputError(
            f"statistics of {len(first.mu)} features can't be compared with those of "
            f"{len(second.mu)}: they were made by another extractor"
        )
    pair = [{"mu": side.mu, "sigma": side.sigma} for side in (first, second)]
    return fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID]


def inception_score(logits: Tensor, split_size: int | None = None) -> float:
    """Mean over splits of exp(mean KL of each prediction to the split's mean prediction).

    Splits are consecutive; the last one may be smaller, as in ADM's evaluator.

    Args:
        logits: class logits, shape (N, K).
        split_size: samples per split; ``None`` for `SPLIT_SIZE`, or all if there are fewer.

    Raises:
        InputError: a split size below 1 or above N.

    Source: arXiv 1606.03498; torch-fidelity.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    size = _split_size(split_size, len(logits))
    scores = [
        isc_features_to_metric(part, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN]
        for part in logits.split(size)
    ]
    return float(np.mean(scores))


def precision_recall(
    samples: Tensor, reference: Tensor, neighbours: int = 3
) -> tuple[float, float]:
    """Share of samples inside the real images' balls, and of real images inside the samples'.

    A ball's radius is the distance to the ``neighbours``-th nearest other point of the same set.

    Args:
        samples: features of samples, shape (N, D).
        reference: features of real images, shape (M, D).
        neighbours: k of the nearest-neighbour balls.

    Raises:
        InputError: ``neighbours`` below 1, or not more images than neighbours.

    Source: arXiv 1904.06991; torch-fidelity.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    _check_neighbours(neighbours, {"samples": len(samples), "reference": len(reference)})
    found = prc_features_to_metric(
        samples,
        reference,
        prc_neighborhood=neighbours,
        prc_batch_size=_PAIRS_AT_ONCE,
        save_cpu_ram=True,
        verbose=False,
    )
    return found["precision"], found["recall"]


def score(
    samples: Features,
    reference: Reference,
    extractor: str,
    neighbours: int = 3,
    split_size: int | None = None,
) -> dict[str, float]:
    """All figures that features of samples and what is known of real images allow.

    Args:
        samples: features of the samples, by layer.
        reference: what is known of the real images.
        extractor: what made the features.
        neighbours: see :func:`precision_recall`.
        split_size: see :func:`inception_score`.

    Returns:
        ``fid`` and ``sfid`` (lower is better) as far as their statistics are known,
        ``inception_score`` (1 to number of classes; the digits classifier is never sure, so real
        digits get about 6 of 10), ``precision`` and ``recall`` if the reference has features.

    Raises:
        InputError: too few samples, or statistics of other features.
    """
    at = layers(extractor)
    row = {
        name: frechet_distance(Statistics.of(samples[at[name]]), known)
        for name, known in reference.statistics.items()
    }
    row["inception_score"] = inception_score(samples[at["isc"]], split_size)
    if reference.features:
        found = precision_recall(samples[at["prc"]], reference.features[at["prc"]], neighbours)
        row["precision"], row["recall"] = found
    return row


def check_counts(
    samples: int | None,
    reference: int | None,
    neighbours: int = 3,
    split_size: int | None = None,
) -> None:
    """Refuse counts that no score can be computed of, before any image is looked at.

    Args:
        samples: number of samples; ``None`` if they are not to be checked.
        reference: number of real images; ``None`` if only their statistics are known.
        neighbours: see :func:`precision_recall`.
        split_size: see :func:`inception_score`.

    Raises:
        InputError: ``neighbours`` below 1 or not fewer than the samples or the real images, or a
            ``split_size`` below 1 or above the number of samples.
    """
    counts = {"samples": samples, "reference": reference}
    _check_neighbours(neighbours, {n: count for n, count in counts.items() if count is not None})
    if samples is not None:
        _split_size(split_size, samples)


def fidelity(
    samples: Tensor | ImageSet,
    reference: Tensor | ImageSet,
    extractor: str = DIGITS_EXTRACTOR,
    neighbours: int = 3,
    split_size: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Score generated samples against real images.

    Args:
        samples: generated images, uint8, N of shape (C, H, W).
        reference: real images, uint8, M of the same shape. M may differ from N.
        extractor: name of a registered torch-fidelity feature extractor, which must provide what
            FID, inception score, precision and recall need. Grey images are repeated to three
            channels for extractors that take RGB.
        neighbours: see :func:`precision_recall`.
        split_size: see :func:`inception_score`.
        device: where features are computed.

    Returns:
        See :func:`score`.

    Raises:
        InputError: images that are not uint8 or do not fit each other or the extractor, too few
            of them, or an unknown extractor.
    """
    drawn, real = _as_set(samples, "samples"), _as_set(reference, "reference")
    check_counts(len(drawn), len(real), neighbours, split_size)
    check_same_shape(drawn.shape, real.shape)
    check_input(real.shape, extractor)
    known = extract(real, extractor, device=device, name="reference")
    features = extract(drawn, extractor, device=device, name="samples")
    return score(features, Reference.of(known, extractor), extractor, neighbours, split_size)


def check_same_shape(samples: tuple[int, ...], reference: tuple[int, ...]) -> None:
    """Refuse to compare images of different sizes.

    Args:
        samples: shape of one sample, (C, H, W).
        reference: shape of one real image.

    Raises:
        InputError: the two shapes differ.
    """
    if samples != reference:
        drawn, real = ("x".join(map(str, shape)) for shape in (samples, reference))
        raise InputError(
            f"samples are {drawn} and reference images {real}; they must have the same channels "
            "and size"
        )


def real_halves_fid(features: Tensor, seed: int) -> float:
    """FID between two random halves of real images: the FID of two samples of one set.

    Args:
        features: features of real images for FID, shape (N, D), N >= 4; of an odd number one is
            left out.
        seed: decides the halves; average over several.

    Raises:
        InputError: fewer than four images.
    """
    if len(features) < 4:
        raise InputError(f"reference: two halves need at least 4 images, got {len(features)}")
    half = len(features) // 2
    order = torch.randperm(len(features), generator=generator(seed, "real halves"))
    first, second = (Statistics.of(features[rows]) for rows in order[: 2 * half].split(half))
    return frechet_distance(first, second)


def subsample(images: Tensor, count: int, seed: int = 0) -> Tensor:
    """``count`` of the images, drawn without replacement; the same ones for the same seed.

    Raises:
        InputError: ``count`` is not between 1 and the number of images.
    """
    if not 1 <= count <= len(images):
        raise InputError(f"count must be between 1 and {len(images)} (all images), got {count}")
    order = torch.randperm(len(images), generator=generator(seed, "subsample"))
    return images[order[:count]]


def _as_set(images: Tensor | ImageSet, name: str) -> ImageSet:
    return TensorImages(images, name) if isinstance(images, Tensor) else images


def _check_neighbours(neighbours: int, counts: dict[str, int]) -> None:
    if neighbours < 1:
        raise InputError(f"neighbours={neighbours} must be at least 1")
    for name, count in counts.items():
        if count < neighbours + 1:
            raise InputError(
                f"{name}: {count} images are too few, neighbours={neighbours} needs at least "
                f"{neighbours + 1}"
            )


def _split_size(split_size: int | None, count: int) -> int:
    if split_size is None:
        return min(SPLIT_SIZE, max(count, 1))
    if not 1 <= split_size <= count:
        raise InputError(
            f"is_split_size={split_size}: valid for {count} samples are 1 to {count}, or null for "
            f"parts of {SPLIT_SIZE:,}, or all if there are fewer"
        )
    return split_size
