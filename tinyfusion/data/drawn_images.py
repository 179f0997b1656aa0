"""Pictures that are made when they are looked at: a model's, and those of latents."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.data.image_sets import ImageSet, IndexedImages
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
        return (images for _, images in self.share(size, 0, 1))

    def share(self, size: int, rank: int, ranks: int) -> Iterator[tuple[int, Tensor]]:
        """See `ImageSet.share`; shares are made of the drawing's batches, then cut to ``size``."""
        chosen = range(rank, self.drawing.num_batches, ranks)
        drawn = self.drawing.draw_all(self.progress, chosen)
        for batch, images in zip(chosen, drawn, strict=True):
            first = self.drawing.rows(batch).start
            for part in images.split(size):
                yield first, part
                first += len(part)

    def digest(self) -> str | None:
        """See `ImageSet.digest`."""
        return None


class DecodedImages(IndexedImages):
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

    def rows(self, rows: range) -> Tensor:
        """See `IndexedImages.rows`."""
        latents, _ = self.source.plain(torch.arange(rows.start, rows.stop))
        return decode_images(latents, self.autoencoder, self.device)

    def digest(self) -> str | None:
        """See `ImageSet.digest`."""
        return None
