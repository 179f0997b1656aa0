"""How close samples are to real images: FID, inception score, precision and recall.

Images are uint8 0..255, shape (N, C, H, W). FID falls with the number of samples even between
sets of one distribution, so compare figures of equal counts only, beside the floor that
:func:`real_halves_fid` gives. :func:`subsample` makes counts equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tinyfusion.errors import InputError
from tinyfusion.metrics.features import DIGITS_EXTRACTOR, extractor_class
from tinyfusion.seeding import generator

NAMES = {
    "frechet_inception_distance": "fid",
    "inception_score_mean": "inception_score",
    "precision": "precision",
    "recall": "recall",
}
"""torch-fidelity's names and ours."""


class _Images(Dataset):
    """Images one at a time, as torch-fidelity wants them (a TensorDataset gives tuples)."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


def fidelity(
    samples: Tensor,
    reference: Tensor,
    extractor: str = DIGITS_EXTRACTOR,
    neighbours: int = 3,
    is_splits: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Score generated samples against real images.

    Args:
        samples: generated images, uint8, shape (N, C, H, W).
        reference: real images, uint8, shape (M, C, H, W). M may differ from N.
        extractor: name of a registered torch-fidelity feature extractor, which must provide what
            all four metrics need. Grey images are repeated to three channels for extractors that
            take RGB.
        neighbours: k of the nearest-neighbour balls of precision and recall.
        is_splits: parts whose inception scores are averaged; ten at 50,000 samples, one here.
        seed: order of the samples before they are split.

    Returns:
        ``fid`` (lower is better), ``inception_score`` (1 to number of classes; the digits
        classifier is never sure, so real digits get about 6 of 10), ``precision``
        (share of samples inside the real images' balls) and ``recall`` (share of real images
        inside the samples' balls).

    Raises:
        InputError: images that are not uint8 or do not fit each other or the extractor, too few
            of them, or an unknown extractor.

    Source: FID arXiv 1706.08500, inception score arXiv 1606.03498, improved precision and recall
    arXiv 1904.06991; computed by torch-fidelity (0.4.0 or later, earlier ones swap the latter).
    """
    if neighbours < 1:
        raise InputError(f"neighbours must be at least 1, got {neighbours}")
    if is_splits < 1:
        raise InputError(f"is_splits must be at least 1, got {is_splits}")
    _check_images(samples, "samples")
    _check_images(reference, "reference")
    for images, name in ((samples, "samples"), (reference, "reference")):
        if len(images) < neighbours + 1:
            raise InputError(
                f"{name}: {len(images)} images are too few, neighbours={neighbours} needs at "
                f"least {neighbours + 1}"
            )
    if len(samples) < is_splits:
        raise InputError(
            f"samples: {len(samples)} images can't be split into is_splits={is_splits} parts"
        )
    measured = _measure(
        samples,
        reference,
        extractor,
        isc=True,
        prc=True,
        isc_splits=is_splits,
        prc_neighborhood=neighbours,
        rng_seed=seed,
    )
    return {ours: measured[theirs] for theirs, ours in NAMES.items()}


def real_halves_fid(images: Tensor, seed: int, extractor: str = DIGITS_EXTRACTOR) -> float:
    """FID between two random halves of real images: no generator can be expected below it.

    Args:
        images: real images, uint8, shape (N, C, H, W), N >= 4; an odd one is left out.
        seed: decides the halves; average over several.
        extractor: as in :func:`fidelity`.

    Raises:
        InputError: fewer than four images, or images that are not uint8 (N, C, H, W).
    """
    _check_images(images, "images")
    if len(images) < 4:
        raise InputError(f"images: two halves need at least 4 images, got {len(images)}")
    half = len(images) // 2
    order = torch.randperm(len(images), generator=generator(seed, "real halves"))
    first, second = images[order[:half]], images[order[half : 2 * half]]
    return _measure(first, second, extractor)["frechet_inception_distance"]


def subsample(images: Tensor, count: int, seed: int = 0) -> Tensor:
    """``count`` of the images, drawn without replacement; the same ones for the same seed.

    Raises:
        InputError: ``count`` is not between 1 and the number of images.
    """
    if not 1 <= count <= len(images):
        raise InputError(f"count must be between 1 and {len(images)} (all images), got {count}")
    order = torch.randperm(len(images), generator=generator(seed, "subsample"))
    return images[order[:count]]


def _check_images(images: Tensor, name: str) -> None:
    if images.dtype != torch.uint8:
        raise InputError(f"{name} must be uint8 0..255, got {str(images.dtype).split('.')[-1]}")
    if images.ndim != 4:
        raise InputError(f"{name} must have shape (N, C, H, W), got {tuple(images.shape)}")


def _measure(samples: Tensor, reference: Tensor, extractor: str, **metrics: Any) -> dict:
    """FID, and what ``metrics`` asks for, under torch-fidelity's own names."""
    if samples.shape[1:] != reference.shape[1:]:
        raise InputError(
            f"samples are {_sizes(samples)} and reference images {_sizes(reference)}; they must "
            "have the same channels and size"
        )
    samples = _fitted(samples, extractor)
    reference = _fitted(reference, extractor)
    from torch_fidelity import calculate_metrics

    # torch-fidelity's data loader draws from the global generator; a training run that is
    # evaluated must not be changed by it.
    with torch.random.fork_rng(devices=[]):
        return calculate_metrics(
            input1=_Images(samples),
            input2=_Images(reference),
            feature_extractor=extractor,
            fid=True,
            cuda=torch.cuda.is_available(),
            batch_size=256,
            cache=False,
            verbose=False,
            save_cpu_ram=True,  # loads images in this process instead of four workers
            **metrics,
        )


def _fitted(images: Tensor, extractor: str) -> Tensor:
    """The images on the CPU with as many channels as the extractor takes."""
    # Only our own extractor states its input; torch-fidelity's own take RGB of any size.
    channels, *size = getattr(extractor_class(extractor), "input_shape", (3,))
    images = images.cpu()
    if images.shape[1] == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    if images.shape[1] != channels or (size and list(images.shape[2:]) != size):
        wanted = "x".join(map(str, (channels, *size)))
        raise InputError(
            f"images are {_sizes(images)}, but extractor {extractor!r} takes {wanted}"
            + ("" if size else " channels")
        )
    return images


def _sizes(images: Tensor) -> str:
    return "x".join(map(str, images.shape[1:]))
