"""Batches in the layout of ADM's evaluator (arXiv 2105.05233): an ``.npz`` file.

``arr_0`` holds uint8 images (N, H, W, C). Reference batches may hold statistics of a larger set
beside them: ``mu`` (D,) and ``sigma`` (D, D) of pool features, ``mu_s`` and ``sigma_s`` of spatial
ones. Images are streamed in and out: fifty thousand of 256x256 are ten gigabytes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from tinyfusion.data.image_sets import ImageSet
from tinyfusion.errors import InputError
from tinyfusion.files import sha256_of, write_atomic

IMAGES = "arr_0"
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")

_TORN = (
    *(OSError, ValueError, EOFError, KeyError, AttributeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise for files that are no ``.npz``, or are cut short."""


class AdmImages(ImageSet):
    """The images of a batch, read as a stream.

    Args:
        path: an ``.npz`` file.
        limit: take at most so many, the first ones.
        key: how the user calls the file, for messages.

    Raises:
        InputError: a file that can't be read, or whose ``arr_0`` is no batch of uint8 images.
    """

    def __init__(self, path: Path, limit: int | None, key: str) -> None:
        self.path, self.key = path, key
        names = names_in(path, key)
        if IMAGES not in names:
            raise InputError(
                f"{key}={str(path)!r} has no images: it holds {', '.join(names) or 'nothing'}; "
                "valid: a batch with uint8 images in arr_0"
            )
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as stream:
                shape, columns_first, dtype = _header(stream)
        except _TORN as error:
            raise self._unreadable(error) from None
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or columns_first:
            raise InputError(
                f"{key}={str(path)!r}: arr_0 is {dtype} of shape {shape}; valid: uint8 of shape "
                "(N, H, W, 3) or (N, H, W, 1)"
            )
        self._count = shape[0] if limit is None else min(limit, shape[0])
        self._limited = self._count < shape[0]
        self.shape = (shape[3], shape[1], shape[2])

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSet.batches`.

        Raises:
            InputError: the file ends too soon.
        """
        channels, height, width = self.shape
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{IMAGES}.npy") as stream:
                _header(stream)
                for start in range(0, self._count, size):
                    shape_BHWC = (min(size, self._count - start), height, width, channels)
                    content = bytearray(stream.read(int(np.prod(shape_BHWC))))
                    images = torch.frombuffer(content, dtype=torch.uint8).view(shape_BHWC)
                    yield images.permute(0, 3, 1, 2).contiguous()
        except (*_TORN, RuntimeError) as error:
            raise self._unreadable(error) from None

    def digest(self) -> str:
        """See `ImageSet.digest`; of the entire file, statistics included."""
        digest = sha256_of(self.path)
        return f"{digest}-{self._count}" if self._limited else digest

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(f"{self.key}={str(self.path)!r} is not a readable .npz file: {error}")


def names_in(path: Path, key: str) -> list[str]:
    """Names of the arrays of an ``.npz`` file.

    Raises:
        InputError: it can't be read as one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _TORN as error:
        raise InputError(f"{key}={str(path)!r} is not a readable .npz file: {error}") from None


def read_statistics(path: Path, key: str) -> dict[str, np.ndarray]:
    """The statistics of a batch, float64, by their names; empty if it holds none.

    Args:
        path: an ``.npz`` file.
        key: how the user calls it, for messages.

    Raises:
        InputError: a file that can't be read; a mean without its covariance or the other way
            round, shapes that don't fit, values that are not finite, or no covariance.
    """
    held = [name for name in names_in(path, key) if name in STATISTICS]
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name].astype(np.float64) for name in held}
    except (*_TORN, TypeError) as error:
        raise InputError(f"{key}={str(path)!r} is not a readable .npz file: {error}") from None
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if (mean in found) != (covariance in found):
            alone = mean if mean in found else covariance
            raise InputError(
                f"{key}={str(path)!r} holds {alone} alone; valid: both {mean} and {covariance}"
            )
        if mean not in found:
            continue
        size = found[mean].size
        if found[mean].shape != (size,) or found[covariance].shape != (size, size):
            raise InputError(
                f"{key}={str(path)!r}: {mean} has shape {found[mean].shape} and {covariance} "
                f"{found[covariance].shape}; valid: (D,) and (D, D)"
            )
        for name in (mean, covariance):
            if not np.isfinite(found[name]).all():
                raise InputError(f"{key}={str(path)!r}: {name} holds values that are not finite")
        matrix = found[covariance]
        if (matrix.diagonal() < 0).any() or not np.allclose(matrix, matrix.T, rtol=1e-4):
            raise InputError(
                f"{key}={str(path)!r}: {covariance} is no covariance: it must be symmetric, with "
                "no negative entry on its diagonal"
            )
    return found


def write_batch(
    path: Path,
    count: int,
    shape: tuple[int, int, int],
    batches: Iterable[Tensor],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write images in the layout of ADM's evaluator, never holding more than a batch.

    Args:
        path: the ``.npz`` file, renamed into place when it is complete.
        count: number of images, N.
        shape: shape of one, (C, H, W).
        batches: the images, uint8, each (B, C, H, W), N in all.
        arrays: further arrays by name, such as labels.

    Returns:
        ``path``.

    Raises:
        ValueError: not N images.
    """
    channels, height, width = shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, channels)}

    def write(temporary: Path) -> None:
        written = 0
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            # The size is not known to zipfile beforehand: above 2 GiB it wants to be warned.
            with archive.open(_entry(IMAGES), "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for images in batches:
                    stream.write(images.permute(0, 2, 3, 1).contiguous().numpy().data)
                    written += len(images)
            if written != count:
                raise ValueError(f"{written} images were given, not {count}")
            for name, array in (arrays or {}).items():
                with archive.open(_entry(name), "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.ascontiguousarray(array))

    return write_atomic(path, write)


def _entry(name: str) -> zipfile.ZipInfo:
    # Without the time of day: equal samples make equal files.
    return zipfile.ZipInfo(f"{name}.npy")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of the array that a stream begins with."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        found = np.lib.format.read_array_header_1_0(stream)
    else:
        found = np.lib.format.read_array_header_2_0(stream)
    if found[2].hasobject:
        raise ValueError("arr_0 holds Python objects")
    return found
