"""Pictures of runs, made small enough to be part of a page.

Shape suffixes: Y, X pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyfusion.errors import InputError

WIDTHS = (960, 640, 440, 300)
"""Pixels that pictures are at most wide, from the most wanted to the least."""

QUALITY = 70
"""Of WebP, 0 to 100."""


class Inline(NamedTuple):
    """A picture as a part of a page.

    Attributes:
        address: ``data:`` address.
        width: in pixels.
        height: in pixels.
    """

    address: str
    width: int
    height: int


def inline(pictures: Mapping[str, Image.Image], budget: int) -> dict[str, Inline]:
    """Pictures as ``data:`` addresses that together stay below a number of bytes.

    All are made of one largest width. If the smallest one is too large as well, the last pictures
    are left out.

    Args:
        pictures: by any key.
        budget: bytes.
    """
    found: dict[str, Inline] = {}
    for width in WIDTHS:
        found, used = {}, 0
        for key, picture in pictures.items():
            entry = _encoded(picture, width)
            used += len(entry.address)
            if used > budget:
                break
            found[key] = entry
        else:
            break
    return found


def opened(file: Path) -> Image.Image:
    """A picture file on a white ground.

    Raises:
        InputError: it can't be read.
    """
    try:
        with Image.open(file) as picture:
            coloured = picture.convert("RGBA")
    except (OSError, ValueError) as error:
        raise InputError(f"{file} can't be read as a picture: {error}") from None
    ground = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(ground, coloured).convert("RGB")


def rows_of_grid(picture: Image.Image, count: int) -> list[Image.Image] | None:
    """The rows of tiles of a sheet that `figures.grid.comparison_grid` wrote, without labels.

    They are found by the white between them.

    Args:
        picture: the sheet.
        count: number of rows.

    Returns:
        The rows from the top; ``None`` if the sheet does not show as many rows of one height.
    """
    white_YX = np.asarray(picture.convert("L")) > 250
    bands = _runs(~white_YX.all(axis=1))[-count:]
    heights = {stop - start for start, stop in bands}
    if len(bands) < count or max(heights) - min(heights) > 1:
        return None
    top, bottom = bands[0][0], bands[-1][1]
    columns = _runs(~white_YX[top:bottom].all(axis=0))
    tile = columns[-1][1] - columns[-1][0]
    left = columns[-1][0]
    for (start, stop), (following, _) in reversed(list(pairwise(columns))):
        if stop - start != tile or following != left:
            break
        left = start
    right = columns[-1][1]
    return [picture.crop((left, start, right, stop)) for start, stop in bands]


def _runs(filled: NDArray[np.bool_] | np.bool_) -> Sequence[tuple[int, int]]:
    """Begin and end of each stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _encoded(picture: Image.Image, width: int) -> Inline:
    if picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY, method=2)
    text = base64.b64encode(out.getvalue()).decode("ascii")
    return Inline(f"data:image/webp;base64,{text}", picture.width, picture.height)
