"""The pictures of a model as a set of images, drawn when they are looked at."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tinyfusion.data.image_sets import ImageSet, TensorImages
from tinyfusion.samplers.generate import Drawing


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

    def digest(self) -> str:
        """See `ImageSet.digest`; draws them all."""
        return TensorImages(self.tensor()).digest()
