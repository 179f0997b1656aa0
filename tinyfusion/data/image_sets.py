"""Sets of finished images that are scored: tensors, folders of pictures, batches in a file.

Shape suffixes: N images, B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinyfusion.data.pictures import SUFFIXES, Mode, look_at, read_picture
from tinyfusion.data.walk import LeftOut, find_pictures
from tinyfusion.errors import InputError
from tinyfusion.notices import alike, notice

log = logging.getLogger(__name__)


class ImageSet(ABC):
    """Images of one size, uint8 0..255, read in order and a batch at a time.

    ``len(images)`` is their number.

    Attributes:
        shape: shape of one image, (C, H, W).
    """

    shape: tuple[int, int, int]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, size: int) -> Iterator[Tensor]:
        """All images, at most ``size`` at a time, each of shape (B, C, H, W)."""

    def share(self, size: int, rank: int, ranks: int) -> Iterator[tuple[int, Tensor]]:
        """One of several shares of the images: every ``ranks``-th batch.

        All shares together are the same batches, however many shares there are.

        Args:
            size: most images of a batch.
            rank: number of the share, 0..ranks-1.
            ranks: number of shares.

        Yields:
            Number of a batch's first image, and the batch.
        """
        first = 0
        for number, images in enumerate(self.batches(size)):
            if number % ranks == rank:
                yield first, images
            first += len(images)

    def digest(self) -> str | None:
        """SHA-256 of the content, hexadecimal; of files' bytes and names where they are files.

        ``None`` for images that take as long to make as their features.
        """
        found = hashlib.sha256(repr((len(self), *self.shape)).encode())
        for batch in self.batches(1024):
            found.update(batch.cpu().contiguous().numpy().data)
        return found.hexdigest()

    def tensor(self) -> Tensor:
        """All images at once, shape (N, C, H, W)."""
        return torch.cat(list(self.batches(256)))


class IndexedImages(ImageSet):
    """Images of which any can be had without those before it."""

    @abstractmethod
    def rows(self, rows: range) -> Tensor:
        """Consecutive images by number, shape (B, C, H, W)."""

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSet.batches`."""
        return (images for _, images in self.share(size, 0, 1))

    def share(self, size: int, rank: int, ranks: int) -> Iterator[tuple[int, Tensor]]:
        """See `ImageSet.share`; the images of other shares are not looked at."""
        for first in range(rank * size, len(self), ranks * size):
            yield first, self.rows(range(first, min(first + size, len(self))))


class TensorImages(IndexedImages):
    """Images in memory.

    Args:
        images: uint8, shape (N, C, H, W).
        name: what they are called in messages.

    Raises:
        InputError: another type or shape.
    """

    def __init__(self, images: Tensor, name: str = "images") -> None:
        if images.dtype != torch.uint8:
            raise InputError(f"{name} must be uint8 0..255, got {str(images.dtype).split('.')[-1]}")
        if images.ndim != 4:
            raise InputError(f"{name} must have shape (N, C, H, W), got {tuple(images.shape)}")
        self.images = images
        _, channels, height, width = images.shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, rows: range) -> Tensor:
        """See `IndexedImages.rows`."""
        return self.images[rows.start : rows.stop]

    def tensor(self) -> Tensor:
        """See `ImageSet.tensor`."""
        return self.images


class PictureFiles(IndexedImages):
    """Picture files of one size. Grey ones keep their one channel if all are grey.

    Args:
        root: the folder that they are in, for messages and for their names in the digest.
        files: the pictures, in the order in which they are read.
        key: how the user calls the folder, for messages.

    Raises:
        InputError: no file, one that is no picture, or pictures of different sizes. Sizes stand
            at the head of a file, so all are known before the first is decoded.
    """

    def __init__(self, root: Path, files: Sequence[Path], key: str) -> None:
        if not files:
            known = ", ".join(sorted(SUFFIXES))
            raise InputError(f"{key}={str(root)!r} holds no pictures ({known})")
        self.root, self.files, self.key = root, list(files), key
        grey, first = True, None
        with alike():
            for file in self.files:
                with self._named():
                    head = look_at(str(file))
                first = first or head.size
                self._check_size(file, head.size, first)
                grey &= head.grey
        assert first is not None
        self._mode: Mode = "L" if grey else "RGB"
        self.shape = (1 if grey else 3, first[1], first[0])

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, rows: range) -> Tensor:
        """See `IndexedImages.rows`.

        Raises:
            InputError: a picture that can't be decoded.
        """
        pictures = [self._decoded(file) for file in self.files[rows.start : rows.stop]]
        images_BHWC = np.stack(pictures).reshape(len(pictures), *self.shape[1:], self.shape[0])
        return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).contiguous()

    def digest(self) -> str:
        """See `ImageSet.digest`."""
        found = hashlib.sha256()
        for file in self.files:
            found.update(file.relative_to(self.root).as_posix().encode() + b"\0")
            with open(file, "rb") as handle:
                found.update(hashlib.file_digest(handle, "sha256").digest())
        return found.hexdigest()

    def _decoded(self, file: Path) -> np.ndarray:
        with self._named():
            picture = read_picture(str(file), self._mode)
        self._check_size(file, picture.size, (self.shape[2], self.shape[1]))
        return np.asarray(picture)

    def _check_size(self, file: Path, size: tuple[int, int], first: tuple[int, int]) -> None:
        if size != first:
            raise InputError(
                f"{self.key}: {str(file)!r} is {size[0]}x{size[1]} pixels, but "
                f"{str(self.files[0])!r} is {first[0]}x{first[1]}; all pictures must have the "
                "same size"
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say in a refusal of a file where the user named it."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.key}: {error}") from None


def pictures_in(folder: Path, limit: int | None, key: str) -> PictureFiles:
    """The pictures of a folder and its subfolders (see `data.walk`), a folder after the other.

    Args:
        folder: the folder.
        limit: take at most so many, evenly spread over the names: classes often are folders.
        key: how the user calls it, for messages.

    Raises:
        InputError: see `PictureFiles`.
    """
    left = LeftOut()
    (found,) = find_pictures(str(folder), [str(folder)], left)
    total = len(found)
    if left:
        notice(f"{key}={str(folder)!r}: left out {left}")
    if limit is not None and limit < total:
        found = [found[index * total // limit] for index in range(limit)]
    of = f" of {total:,}" if len(found) < total else ""
    log.info("%s: %s%s picture(s) of %s", key, f"{len(found):,}", of, folder)
    return PictureFiles(folder, [Path(file) for file in found], key)
