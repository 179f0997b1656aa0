"""Images on disk, one folder per class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.pictures import SUFFIXES, Mode, look_at, read_picture
from tinyfusion.data.source import ImageSource, split_order
from tinyfusion.data.walk import BROKEN_LINKS, LeftOut, class_folders, find_pictures
from tinyfusion.errors import InputError
from tinyfusion.notices import alike, notice, tally
from tinyfusion.seeding import Rows, StepNoise

PROBED = 10_000
"""So many files are looked at before the start."""

MODES: dict[int, Mode] = {1: "L", 3: "RGB"}

log = logging.getLogger(__name__)


class ImageFolder(ImageSource):
    """Images ``root/<class>/**/<image>``; classes are numbered in the order of their names.

    Which files are images is said by `data.walk`, how they are read by `data.pictures`. Every image
    is cropped to a square as in ADM (see ``centre_crop``) each time it is fetched.

    Args:
        root: folder that holds one folder per class.
        size: height and width to crop to, in pixels.
        channels: 3 (colour) or 1 (grey).
        flip: mirror each training image left to right with probability one half.
        held_out: how many images are held out; which ones is the same in every run.
        probe: look at the heads of the files, of many at 10,000 evenly spread ones, and decode the
            first image of every class, so that most of what is wrong is noticed before training.

    Attributes:
        files: every image file, training and held-out, in the order of their numbers.
        labels: the class of every file, int64, shape (number of files,).
        classes: names of the classes.

    Raises:
        InputError: a wrong argument; ``root`` is missing, holds no class folder, a class folder
            without images or a broken link that may be one; too few images to hold ``held_out``
            out; an image that is looked at (see ``probe``) can't be decoded or is of no known
            range. Any other one raises it when it is fetched.
    """

    def __init__(
        self,
        root: Path | str,
        size: int,
        channels: int = 3,
        flip: bool = True,
        held_out: int = 0,
        probe: bool = True,
    ) -> None:
        if size < 1:
            raise InputError(f"data.size={size}: must be at least 1 pixel")
        if channels not in MODES:
            raise InputError(f"data.channels={channels}: must be 1 (grey) or 3 (colour)")
        self.size, self.channels, self._flip = size, channels, flip
        self.root = Path(root).expanduser()
        self.files, self.labels, self.classes, first_of_class = _find_images(self.root)
        self.num_classes = len(self.classes)
        log.info(
            "data: %s picture(s) in %s class(es) of %s, cropped to %d pixels",
            f"{len(self.files):,}",
            f"{self.num_classes:,}",
            self.root,
            size,
        )
        if not 0 <= held_out < len(self.files):
            raise InputError(
                f"data.held_out={held_out}: must be between 0 and {len(self.files) - 1}, "
                f"as {str(root)!r} holds {len(self.files)} images"
            )
        self._train, self._held_out = split_order(len(self.files), held_out)
        if probe:
            with alike():
                self._probe(first_of_class)

    def _probe(self, first_of_class: list[int]) -> None:
        total = len(self.files)
        count = min(total, PROBED)
        refused: list[InputError] = []
        for number in range(count):
            try:
                look_at(self.files[number * total // count])
            except InputError as error:
                refused.append(error)
        if refused:
            more = f" (one of {len(refused):,} such files)" if len(refused) > 1 else ""
            raise type(refused[0])(f"{refused[0]}{more}")
        self._read(first_of_class)

    def __len__(self) -> int:
        return len(self._train)

    def fetch(
        self, indices: Tensor, augment: StepNoise | None, rows: Rows | None
    ) -> tuple[Tensor, ClassLabels]:
        """See ``ImageSource.fetch``; augmentation mirrors images left to right."""
        images, labels = self._pick(self._train[indices])
        if augment is not None and rows is not None and self._flip:
            mirrored_B111 = augment.uniform("augment", rows, 1, 1, 1) < 0.5
            images = torch.where(mirrored_B111, images.flip(3), images)
        return images, labels

    def held_out(self) -> tuple[Tensor, ClassLabels]:
        """All held-out images (N, C, H, W) in [-1, 1] and their labels (N,)."""
        return self._pick(self._held_out)

    def reference(self) -> Tensor:
        """All images, training then held-out, uint8 0..255, shape (N, C, H, W), in memory."""
        return self._read(torch.cat([self._train, self._held_out]).tolist())

    def _pick(self, numbers: Tensor) -> tuple[Tensor, ClassLabels]:
        images = self._read(numbers.tolist()).float() / 127.5 - 1
        return images, ClassLabels(self.labels[numbers])

    def _read(self, numbers: Iterable[int]) -> Tensor:
        """Cropped images by number of file, uint8 0..255, shape (B, C, H, W)."""
        shape = (self.size, self.size, self.channels)
        arrays = [self.decode(self.files[number]) for number in numbers]
        stacked = torch.from_numpy(np.stack(arrays)) if arrays else torch.empty(0, *shape)
        return stacked.to(torch.uint8).permute(0, 3, 1, 2).contiguous()

    def decode(self, file: str) -> np.ndarray:
        """The cropped image of one file, uint8 0..255, shape (H, W, C).

        Raises:
            UndecodableImageError: its content can't be decoded, or is of no known range.
            InputError: it can't be read.
        """
        picture = read_picture(file, MODES[self.channels])
        if min(picture.size) < self.size:
            tally(
                f"picture(s) smaller than data.size={self.size}, enlarged to it",
                detail=f"{file} has {picture.width}x{picture.height} pixels",
                item=file,
            )
        cropped = centre_crop(picture, self.size)
        return np.asarray(cropped).reshape(self.size, self.size, self.channels)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image, brought to ``size`` x ``size`` pixels.

    Halved with a box filter while the short side is at least twice ``size``, then resized
    bicubically so that the short side is ``size``, then cropped. Source: preprocessing of ADM
    (arXiv 2105.05233), which DiT and its FID reference statistics use.
    """
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _find_images(root: Path) -> tuple[list[str], Tensor, list[str], list[int]]:
    """Image files in order, labels (N,), class names, and the number of each class's first file."""
    if not root.is_dir():
        raise InputError(f"data.root={str(root)!r}: no such folder")
    left = LeftOut()
    classes = class_folders(str(root), left)
    where = f"data.root={str(root)!r}"
    # One that stands for a class would change the numbers of those behind it.
    lost = [name for name in left.names.get(BROKEN_LINKS, ()) if not os.path.splitext(name)[1]]
    if lost:
        raise InputError(f"{where}: {lost[0]!r} is a broken link; mend or remove it")
    if not classes:
        raise InputError(
            f"{where}: holds no class folders; images are expected as "
            f"{root / '<class>' / '<image>'}{f' (left out: {left})' if left else ''}"
        )
    found = find_pictures(str(root), classes, left)
    names = [os.path.basename(folder) for folder in classes]
    for name, files in zip(names, found, strict=True):
        if not files:
            raise InputError(
                f"{where}: class folder {name!r} holds no images ({', '.join(sorted(SUFFIXES))})"
                f"{f'; left out in {root}: {left}' if left else ''}"
            )
    if left:
        notice(f"{where}: left out {left}")
    counts = torch.tensor([len(files) for files in found])
    labels = torch.arange(len(found)).repeat_interleave(counts)
    return list(chain(*found)), labels, names, (counts.cumsum(0) - counts).tolist()
