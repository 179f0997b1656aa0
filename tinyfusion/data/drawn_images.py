"""Pictures that are made when they are looked at: a model's, and those of latents."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.data.image_sets import ImageSet
from tinyfusion.data.source import ImageSource
from tinyfusion.samplers.generate import Drawing, decode_images


class DrawnImages(ImageSet):
    """The pictures of a model, drawn when they are looked at and not kept.

    Args:
        drawing: what is drawn.
        progress: show a bar.
    """

    def __init__(self, drawing: Drawing, progress: bool = False) -> None:
        self.drawing, self.progress = drawing, progress
        self.shape = drawing.shape

    def __len__(self) -> int:
        return len(self.drawing)

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSet.batches`."""
        for images in self.drawing.draw_all(self.progress):
            yield from images.split(size)

    def digest(self) -> str | None:
        """See `ImageSet.digest`."""
        return None


class DecodedImages(ImageSet):
    """Pictures of training latents, decoded when they are looked at and not kept.

    Args:
        source: the data, which holds latents.
        count: take so many, the first ones.
        autoencoder: their decoder.
        device: where to decode.
    """

    def __init__(
        self, source: ImageSource, count: int, autoencoder: Autoencoder, device: torch.device
    ) -> None:
        self.source, self.count = source, count
        self.autoencoder, self.device = autoencoder, device
        side = source.size * autoencoder.factor
        self.shape = (3, side, side)

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSet.batches`."""
        for rows in torch.arange(self.count).split(size):
            latents, _ = self.source.plain(rows)
            yield decode_images(latents, self.autoencoder, self.device)

    def digest(self) -> str | None:
        """See `ImageSet.digest`."""
        return None
