"""scikit-learn's 1,797 handwritten 8x8 digits (UCI "Optical Recognition of Handwritten Digits")."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.source import ImageSource, split_order
from tinyfusion.errors import InputError
from tinyfusion.pixels import to_uint8
from tinyfusion.seeding import Rows, StepNoise

NUM_HELD_OUT = 297
BACKGROUND = -1.0


@cache
def digit_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The digits, split into 1,500 training and 297 held-out images.

    Returns:
        training images (1500, 1, 8, 8) in [-1, 1], their labels (1500,), held-out images
        (297, 1, 8, 8) and their labels (297,). The tensors are shared: don't write to them.
    """
    # Imported late: scikit-learn takes a second to import and only the digits need it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # values 0..16
    labels = torch.from_numpy(digits.target).long()
    train, held_out = split_order(len(images), NUM_HELD_OUT)
    return images[train], labels[train], images[held_out], labels[held_out]


class Digits(ImageSource):
    """Real handwritten digits, ten classes, one channel, 8x8 pixels.

    Args:
        shift: training images are moved by up to this many pixels in each direction, 0..7.
        shift_probability: share of the training images that are moved. Samples show what
            training shows, so with every digit moved FID can't fall below 0.87; with a quarter
            of them moved the floor is 0.09.

    Raises:
        InputError: ``shift`` or ``shift_probability`` is out of range.
    """

    num_classes = 10
    channels = 1
    size = 8

    def __init__(self, shift: int = 1, shift_probability: float = 0.25) -> None:
        if not 0 <= shift < self.size:
            raise InputError(f"data.shift={shift}: must be between 0 and {self.size - 1} pixels")
        if not 0 <= shift_probability <= 1:
            raise InputError(f"data.shift_probability={shift_probability}: must be in [0, 1]")
        self._shift, self._shift_probability = shift, shift_probability
        self._train, self._labels, self._held_out, self._held_out_labels = digit_split()

    def __len__(self) -> int:
        return len(self._train)

    def fetch(
        self, indices: Tensor, augment: StepNoise | None, rows: Rows | None
    ) -> tuple[Tensor, ClassLabels]:
        """See ``ImageSource.fetch``; augmentation moves each image by whole pixels."""
        images = self._train[indices]
        if augment is not None and rows is not None and self._shift:
            uniform_B3 = augment.uniform("augment", rows, 3)
            offsets_B2 = (uniform_B3[:, :2] * (2 * self._shift + 1)).long() - self._shift
            moved_B1 = uniform_B3[:, 2:] < self._shift_probability
            offsets_B2 = torch.where(moved_B1, offsets_B2, 0)
            images = move(images, offsets_B2, self._shift)
        return images, ClassLabels(self._labels[indices])

    def held_out(self) -> tuple[Tensor, ClassLabels]:
        """The 297 held-out images and their labels."""
        return self._held_out, ClassLabels(self._held_out_labels)

    def reference(self) -> Tensor:
        """All 1,797 images, uint8 0..255, shape (1797, 1, 8, 8)."""
        return to_uint8(torch.cat([self._train, self._held_out]))


def move(images: Tensor, offsets_B2: Tensor, limit: int) -> Tensor:
    """Move every image by its own whole number of pixels; what comes in is background.

    Args:
        images: shape (B, C, H, W), in [-1, 1].
        offsets_B2: pixels down and right, int64, each in -limit..limit.
        limit: largest move in pixels.

    Returns:
        moved images, shape (B, C, H, W).
    """
    batch, channels, height, width = images.shape
    padded = functional.pad(images, (limit,) * 4, value=BACKGROUND)
    rows_BH1 = (torch.arange(height) + limit - offsets_B2[:, :1])[:, :, None]
    columns_B1W = (torch.arange(width) + limit - offsets_B2[:, 1:])[:, None, :]
    flat = rows_BH1 * padded.shape[-1] + columns_B1W
    index = flat.reshape(batch, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).reshape(images.shape)
