"""Opening the images that a user names: a batch, a folder of pictures, samples of ours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tinyfusion.data.adm_batch import AdmImages
from tinyfusion.data.image_sets import ImageSet, pictures_in
from tinyfusion.data.walk import LeftOut, listed
from tinyfusion.errors import InputError
from tinyfusion.notices import notice
from tinyfusion.text import shell_word

SAMPLES = "samples"
"""In a run's folder: where `tinyfusion sample` puts its images."""


class Shards(ImageSet):
    """Batches in several files, one after the other.

    Args:
        parts: the batches, at least one.

    Raises:
        InputError: batches of images of different sizes.
    """

    def __init__(self, parts: Sequence[AdmImages]) -> None:
        self.parts = list(parts)
        self.shape = self.parts[0].shape
        for part in self.parts:
            if part.shape != self.shape:
                raise InputError(
                    f"{part.key}: {str(part.path)!r} holds images of shape {part.shape}, but "
                    f"{str(self.parts[0].path)!r} of {self.shape}; all must have the same size"
                )

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSet.batches`; sizes do not depend on how many files there are."""
        left = torch.empty(0, *self.shape, dtype=torch.uint8)
        for part in self.parts:
            for images in part.batches(size):
                left = torch.cat([left, images])
                if len(left) >= size:
                    yield left[:size]
                    left = left[size:]
        if len(left):
            yield left

    def digest(self) -> str:
        """See `ImageSet.digest`."""
        return hashlib.sha256("".join(part.digest() for part in self.parts).encode()).hexdigest()


def open_images(path: Path | str, limit: int | None, key: str) -> ImageSet:
    """The images that a path stands for.

    Args:
        path: an ``.npz`` batch in the layout of ADM's evaluator; a folder of pictures, also in
            subfolders; or a folder that `tinyfusion sample` wrote, of pictures or of
            batches.
        limit: take at most so many: the first ones of a batch, of a folder of pictures some that
            are evenly spread over the names.
        key: how the user calls the path, for messages.

    Raises:
        InputError: no such file, another content, or images of different sizes.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return AdmImages(path, limit, key)
    if not path.is_dir():
        raise InputError(
            f"{key}={str(path)!r} does not exist; valid: an .npz file with images in arr_0, a "
            "folder of pictures, or a folder that 'tinyfusion sample' wrote"
        )
    inner = path / SAMPLES
    if inner.is_dir() and (path / "config.yaml").is_file():
        if not (path / "finished.json").is_file():
            raise InputError(
                f"{key}={str(path)!r} is not finished; resume it with tinyfusion sample "
                f"{shell_word('resume', path)}, or give {shell_word(key, inner)} for what there is"
            )
        path = inner
    others = LeftOut()
    names = listed(str(path), str(path), others, {".npz"})[1]
    shards = [path / name for name in sorted(names) if name[0].isdigit()]
    if not shards:
        return pictures_in(path, limit, key)
    if others.endings.total():
        notice(f"{key}={str(path)!r}: read {len(shards)} batch(es); left out {others}")
    parts: list[AdmImages] = []
    for shard in shards:
        left = None if limit is None else limit - sum(map(len, parts))
        if left is not None and left < 1:
            break
        parts.append(AdmImages(shard, left, key))
    return Shards(parts)
