"""Real images to score samples against, from a file that the user names."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tinyfusion.errors import InputError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

KEY = "evaluation.reference"


def read_reference(path: Path | str, limit: int | None = None, key: str = KEY) -> Tensor:
    """Real images from a batch in the layout of ADM's evaluator, or from a folder.

    Args:
        path: an ``.npz`` file whose ``arr_0`` holds uint8 images (N, H, W, C), such as ADM's
            reference batches (arXiv 2105.05233) and the ``samples.npz`` of `tinyfusion sample`;
            or a folder of pictures, also in subfolders, all of one size.
        limit: read at most so many, the first ones; of a folder in the order of their names.
        key: how the user calls the path, for messages.

    Returns:
        Images, uint8 0..255, shape (N, C, H, W).

    Raises:
        InputError: no such file, another content, or pictures of different sizes.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path, limit, key)
    if not path.is_file():
        raise InputError(
            f"{key}={str(path)!r} does not exist; valid: an .npz file with images in arr_0, or a "
            "folder of pictures"
        )
    return _read_npz(path, limit, key)


def _read_npz(path: Path, limit: int | None, key: str) -> Tensor:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            images = archive["arr_0"] if "arr_0" in names else None
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"{key}={str(path)!r} is not a readable .npz file: {error}") from None
    if images is None:
        raise InputError(
            f"{key}={str(path)!r} has no images: it holds {', '.join(names) or 'nothing'}; valid: "
            "a batch with uint8 images in arr_0"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(
            f"{key}={str(path)!r}: arr_0 is {images.dtype} of shape {images.shape}; valid: uint8 "
            "of shape (N, H, W, 3) or (N, H, W, 1)"
        )
    return torch.from_numpy(images[:limit]).permute(0, 3, 1, 2).contiguous()


def _read_folder(folder: Path, limit: int | None, key: str) -> Tensor:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )[:limit]
    if not files:
        raise InputError(f"{key}={str(folder)!r} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    arrays: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                array = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
        except Exception as error:  # Pillow's decoders raise many kinds for a broken file
            raise InputError(f"{key}: image file {str(file)!r} can't be decoded: {error}") from None
        array = array[..., None] if array.ndim == 2 else array
        if arrays and array.shape != arrays[0].shape:
            raise InputError(
                f"{key}: {str(file)!r} is {_size(array)}, but {str(files[0])!r} is "
                f"{_size(arrays[0])}; all pictures must have the same size and channels"
            )
        arrays.append(array)
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _size(array: np.ndarray) -> str:
    height, width, channels = array.shape
    return f"{width}x{height} with {channels} channel(s)"
