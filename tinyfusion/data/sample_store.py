"""A folder of samples, written by any number of processes and resumed after an interruption.

The unit of work is a batch of consecutive samples, which is always the same one: how batches are
assigned to devices, and which of them exist already, has no influence on the images. Files are
complete or absent, so their names tell what exists.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tinyfusion.data.adm_batch import AdmImages, write_batch
from tinyfusion.data.image_sets import ImageSet, PictureFiles
from tinyfusion.data.open_images import Shards
from tinyfusion.errors import InputError
from tinyfusion.files import write_atomic
from tinyfusion.text import readable_bytes

FORMATS = ("png", "npz")
"""One picture per file, or one batch in the layout of ADM's evaluator per shard."""


class SampleStore:
    """Where numbered images of one size are put, shard by shard.

    Args:
        root: the folder.
        count: number of images.
        shape: shape of one image, (C, H, W).
        batch_size: images per batch, the last one may have fewer.
        shard_size: images per file of batches, rounded down to full batches but at
            least one. Of pictures each batch is a shard, so that devices get equal shares.
        form: one of `FORMATS`.

    Raises:
        InputError: an unknown ``form``, or a size below 1.
    """

    def __init__(
        self,
        root: Path,
        count: int,
        shape: tuple[int, int, int],
        batch_size: int,
        shard_size: int,
        form: str,
    ) -> None:
        if form not in FORMATS:
            raise InputError(f"format={form!r} is not known; valid: {', '.join(FORMATS)}")
        for name, value in (("n", count), ("batch_size", batch_size), ("shard_size", shard_size)):
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        self.root, self.count, self.shape, self.form = root, count, shape, form
        self._batch = batch_size
        self._batches_per_shard = max(1, shard_size // batch_size) if form == "npz" else 1
        self._digits = max(6, len(str(count - 1)))

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.count // (self._batch * self._batches_per_shard))

    def batches_of(self, shard: int) -> range:
        """Numbers of a shard's batches."""
        first = shard * self._batches_per_shard
        return range(first, min(first + self._batches_per_shard, -(-self.count // self._batch)))

    def rows_of(self, batch: int) -> range:
        """Numbers of a batch's images."""
        first = batch * self._batch
        return range(first, min(first + self._batch, self.count))

    def picture(self, index: int) -> Path:
        """File of an image, of a store of pictures."""
        return self.root / self._picture(index)

    def _picture(self, index: int) -> str:
        return f"{index:0{self._digits}d}.png"

    def shard(self, shard: int) -> Path:
        """File of a shard, of a store of batches: named by the number of its first image."""
        first = self.rows_of(self.batches_of(shard)[0])[0]
        return self.root / f"{first:0{self._digits}d}.npz"

    # -- what is there -------------------------------------------------------------------------

    def missing(self) -> list[int]:
        """Numbers of the batches of which not every image is there."""
        # Asked again and again while others draw: plain names are ten times as fast as paths.
        there = set(os.listdir(self.root)) if self.root.is_dir() else set()
        if self.form == "npz":
            return [
                batch
                for shard in range(self.num_shards)
                if self.shard(shard).name not in there
                for batch in self.batches_of(shard)
            ]
        return [
            batch
            for shard in range(self.num_shards)
            for batch in self.batches_of(shard)
            if any(self._picture(index) not in there for index in self.rows_of(batch))
        ]

    def images_in(self, batches: Sequence[int]) -> int:
        """Number of images of some batches."""
        return sum(len(self.rows_of(batch)) for batch in batches)

    def images(self) -> ImageSet:
        """All images, when none is missing."""
        if self.form == "npz":
            files = [self.shard(shard) for shard in range(self.num_shards)]
            return Shards([AdmImages(file, None, "samples") for file in files])
        return PictureFiles(self.root, [self.picture(i) for i in range(self.count)], "samples")

    # -- putting more there --------------------------------------------------------------------

    def check_space(self, missing: Sequence[int], packed: bool) -> None:
        """Refuse to begin what the disk can't hold; pictures are taken as if not compressed.

        Args:
            missing: the batches that are still to be written.
            packed: whether all images are to be written once more, into one file.

        Raises:
            InputError: they may need more bytes than are free there.
        """
        image = int(torch.tensor(self.shape).prod())
        need = image * (self.images_in(missing) + (self.count if packed else 0))
        place = next(folder for folder in (self.root, *self.root.parents) if folder.is_dir())
        free = shutil.disk_usage(place).free
        if need > free:
            raise InputError(
                f"n={self.count}: up to {readable_bytes(need)} are to be written to {self.root}, "
                f"but only {readable_bytes(free)} are free there"
            )

    def fill(self, shard: int, missing: Collection[int], draw: Callable[[int], Tensor]) -> None:
        """Draw and write what is missing of a shard.

        Args:
            shard: its number.
            missing: numbers of the batches that are missing.
            draw: gives the images of a batch, uint8, (B, C, H, W).
        """
        wanted = [batch for batch in self.batches_of(shard) if batch in missing]
        self.root.mkdir(parents=True, exist_ok=True)
        if self.form == "npz" and wanted:
            # A generator, so that a shard is drawn while it is written.
            images = (draw(batch) for batch in wanted)
            write_batch(self.shard(shard), self.images_in(wanted), self.shape, images)
            return
        for batch in wanted:
            for index, image in zip(self.rows_of(batch), draw(batch), strict=True):
                write_atomic(self.picture(index), _pillow(image).save)


def _pillow(image_CHW: Tensor) -> Image.Image:
    pixels = image_CHW.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
