"""What a data config builds: labelled real images, some of them held out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from tinyfusion.seeding import Rows, StepNoise


class ImageSource(ABC):
    """Labelled images of one size, split into training and held-out images.

    ``len(source)`` is the number of training images.

    Attributes:
        num_classes: number of classes; labels are 0..num_classes-1.
        channels: image channels.
        size: height and width in pixels.
    """

    num_classes: int
    channels: int
    size: int

    @abstractmethod
    def __len__(self) -> int:
        """Number of training images."""

    @abstractmethod
    def fetch(
        self, indices: Tensor, augment: StepNoise | None, rows: Rows | None
    ) -> tuple[Tensor, Tensor]:
        """Training images by number.

        Args:
            indices: numbers of training images, 0..len(self)-1, shape (B,).
            augment: draws of the light augmentation; None for plain images.
            rows: which rows of the global batch these are (B = rows.count); used by ``augment``.

        Returns:
            images in [-1, 1], float32, shape (B, C, H, W), and labels, int64, shape (B,).
        """

    @abstractmethod
    def held_out(self) -> tuple[Tensor, Tensor]:
        """All held-out images (N, C, H, W) in [-1, 1] and their labels (N,), never augmented."""

    @abstractmethod
    def reference(self) -> Tensor:
        """All real images, training then held-out, uint8 0..255, shape (N, C, H, W)."""


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
