"""Whether samples are copies of training images."""

from __future__ import annotations

import torch
from torch import Tensor

from tinyfusion.errors import InputError


def nearer_than_heldout(samples: Tensor, train: Tensor, heldout: Tensor) -> dict[str, float]:
    """Compare the samples' distance to the training images with that of held-out images.

    A held-out image is as near to the training images as an unseen image of the same kind should
    be. Samples of a model that learned the distribution lie about as near: half of them below the
    held-out median, a twentieth below the held-out 5th percentile. Clearly larger shares mean
    that training images are reproduced; smaller ones that the samples are off the data.

    Args:
        samples: generated images, shape (N, C, H, W).
        train: the images that the model was trained on, shape (M, C, H, W).
        heldout: real images that it was not trained on, shape (K, C, H, W). All three have one
            dtype and one pixel range.

    Returns:
        ``share_below_median`` and ``share_below_p5``: share of samples whose nearest training
        image is strictly nearer than the held-out images' median and 5th percentile;
        ``samples_median``, ``heldout_median`` and ``heldout_p5``: those distances, Euclidean
        over all pixels, in units of the pixel range.

    Raises:
        InputError: a set is empty, or shapes or dtypes differ.
    """
    for name, images in (("samples", samples), ("train", train), ("heldout", heldout)):
        if len(images) == 0:
            raise InputError(f"{name} holds no images")
        if images.shape[1:] != train.shape[1:] or images.dtype != train.dtype:
            raise InputError(
                f"{name} are {images.dtype} {tuple(images.shape[1:])}, training images are "
                f"{train.dtype} {tuple(train.shape[1:])}; both must agree"
            )
    samples_N = _nearest(samples, train)
    heldout_K = _nearest(heldout, train)
    median = heldout_K.quantile(0.5).item()
    p5 = heldout_K.quantile(0.05).item()
    return {
        "share_below_median": (samples_N < median).double().mean().item(),
        "share_below_p5": (samples_N < p5).double().mean().item(),
        "samples_median": samples_N.quantile(0.5).item(),
        "heldout_median": median,
        "heldout_p5": p5,
    }


def _nearest(images: Tensor, train: Tensor, batch_size: int = 256) -> Tensor:
    """Distance of each image to its nearest training image, shape (N,), float64."""
    train_MP = train.flatten(1).double()
    rows = images.flatten(1).split(batch_size)
    return torch.cat([torch.cdist(row.double(), train_MP).amin(1) for row in rows])
