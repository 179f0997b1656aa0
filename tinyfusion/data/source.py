"""What a data config builds: real images with their conditioning, some of them held out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from tinyfusion.conditioning import Conditioning
from tinyfusion.errors import InputError
from tinyfusion.notices import tally
from tinyfusion.seeding import Rows, StepNoise

Labels = TypeVar("Labels", bound=Conditioning)

_TRIED = 10
"""So many samples in a row may hold values that are not finite."""


class ImageSource(ABC):
    """Images, or latents of images, of one size, and what belongs to each: a class or a text.

    Some are for training, some held out. ``len(source)`` is the number of training images.

    Attributes:
        num_classes: number of classes; labels are 0..num_classes-1. 0 for a source whose
            conditioning is something else than a class label.
        channels: channels of what the diffusion model is trained on.
        size: its height and width.
        pixels: whether that is pixels; if not, it is latents and there is no `reference`.
    """

    num_classes: int
    channels: int
    size: int
    pixels: bool = True

    @abstractmethod
    def __len__(self) -> int:
        """Number of training images."""

    @abstractmethod
    def fetch(
        self, indices: Tensor, augment: StepNoise | None, rows: Rows | None
    ) -> tuple[Tensor, Conditioning]:
        """Training images by number, as they are stored; runs where batches are loaded.

        Args:
            indices: numbers of training images, 0..len(self)-1, shape (B,).
            augment: draws of the light augmentation; None for plain images.
            rows: which rows of the global batch these are (B = rows.count), for the draws of
                ``augment``; None for plain images.

        Returns:
            what `finish` takes, first axis B, and the conditioning of B samples. Unless `finish`
            is overridden: images in [-1, 1], float32, shape (B, C, H, W).
        """

    def finish(self, stored: Tensor, augment: StepNoise | None, rows: Rows | None) -> Tensor:
        """Turn what `fetch` gave into training inputs; runs on the device that trains.

        Args:
            stored: what `fetch` gave, on any device.
            augment: the same draws as in `fetch`; None for none.
            rows: the same rows as in `fetch`.

        Returns:
            float32, shape (B, C, H, W), on the device of ``stored``: images in [-1, 1], or
            latents times their scale factor.
        """
        return stored

    def plain(self, indices: Tensor) -> tuple[Tensor, Conditioning]:
        """Training inputs (B, C, H, W) and their conditioning without any draw, as in `held_out`.

        Args:
            indices: numbers of training images, 0..len(self)-1, shape (B,).
        """
        stored, conditioning = self.fetch(indices, None, None)
        return self.finish(stored, None, None), conditioning

    @abstractmethod
    def held_out(self) -> tuple[Tensor, Conditioning]:
        """All held-out inputs (N, C, H, W) and their conditioning, without any draw."""

    @abstractmethod
    def reference(self) -> Tensor:
        """All real images, training then held-out, uint8 0..255, shape (N, C, H, W).

        Raises:
            InputError: the source holds no pixels (see ``pixels``).
        """


def finite(
    read: Callable[[Tensor], tuple[Tensor, Labels]],
    indices: Tensor,
    count: int,
    name: Callable[[int], str],
) -> tuple[Tensor, Labels]:
    """Read some of ``count`` samples; of one that is not finite the next that is, tallied.

    Which one takes its place depends on the sample alone, not on the batch.

    Args:
        read: gives samples by number, first axis B, and their conditioning.
        indices: numbers 0..count-1 of the wanted samples, shape (B,).
        count: number of samples.
        name: what a sample is called in messages, by its number.

    Raises:
        InputError: ten in a row are not finite.
    """
    for _ in range(_TRIED):
        stored, conditioning = read(indices)
        bad_B = not_finite(stored)
        if not bad_B.any():
            return stored, conditioning
        for index in indices[bad_B].unique().tolist():
            tally(
                "sample(s) with values that are not finite, in place of which the next was taken",
                detail=name(index),
                item=name(index),
            )
        indices = torch.where(bad_B, (indices + 1) % count, indices)
    raise InputError(
        f"{name(int(indices[bad_B][0]))} and the {_TRIED - 1} before it hold values that are not "
        "finite (NaN or infinity); make them again"
    )


def not_finite(samples: Tensor) -> Tensor:
    """Which samples hold a value that is not finite, shape (B,); quick where none does.

    Args:
        samples: floating-point numbers, first axis B.
    """
    bits = samples.view(torch.int16) & 0x7FFF if samples.dtype == torch.float16 else None
    if not samples.numel():
        good = True
    elif bits is not None:  # many times as fast as half-precision numbers, in the same order
        good = bool(bits.aminmax().max < 0x7C00)
    else:
        least, largest = samples.aminmax()  # both NaN if there is one
        good = bool(least.isfinite() & largest.isfinite())
    if good:
        return torch.zeros(len(samples), dtype=torch.bool)
    return (~samples.isfinite()).flatten(1).any(1).cpu()


def split_order(size: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Numbers of the training and of the held-out images: the same in every run.

    Args:
        size: number of images.
        held_out: how many of them are held out, 0..size.

    Returns:
        training numbers, shape (size - held_out,), and held-out numbers, shape (held_out,).
    """
    # The split is part of the data set, so no seed of a run enters.
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return order[held_out:], order[:held_out]
