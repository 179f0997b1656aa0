"""Grids of images, every pixel an exact square.

Shape suffixes: N images, C channels (1 grey, 3 colour), H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import FORMS, INK, PNG_ONLY, save_figure, styled

Images = Tensor | NDArray[np.uint8]
"""uint8 0..255, shape (N, C, H, W), C = 1 or 3."""

DOTS_PER_INCH = 144
TILE_SIDE = 72
"""Pixels that a tile is about as wide as when no scale is given."""
MARGIN = 14
LABEL_GAP = 10


@styled
def image_grid(
    images: Images,
    columns: int,
    path: Path | str,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    scale: int | None = None,
    forms: Sequence[str] = PNG_ONLY,
) -> Path:
    """Write images as a grid, filled row by row, enlarged without smoothing.

    Args:
        images: uint8 0..255, shape (N, C, H, W), on the CPU.
        columns: images per row; the last row may be shorter.
        path: PNG file to write.
        row_labels: one per row, to the left.
        column_labels: one per column, above.
        title: line above everything.
        scale: side of the square that a pixel becomes; default: tiles of about 72 pixels.
        forms: of `FORMS`, those that are written.

    Returns:
        ``path``.

    Raises:
        InputError: images of another type or shape, or labels of another number.
    """
    tiles_NHW3 = _tiles(images)
    mosaic, gap = _mosaic(tiles_NHW3, columns, scale)
    num_rows = -(-len(tiles_NHW3) // columns)
    _check_labels("row_labels", row_labels, num_rows)
    _check_labels("column_labels", column_labels, columns)
    return _write(mosaic, num_rows, columns, gap, path, row_labels, column_labels, title, forms)


def comparison_grid(
    rows: Mapping[str, Images],
    path: Path | str,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    scale: int | None = None,
    forms: Sequence[str] = PNG_ONLY,
) -> Path:
    """Write one row of images per model, one column per class.

    Args:
        rows: images of every model by its name, in order; each of the same shape
            (K, C, H, W), uint8 0..255, on the CPU.
        path: PNG file to write.
        column_labels: names of the K columns; default: 0..K-1.
        title: line above everything.
        scale: see `image_grid`.
        forms: of `FORMS`, those that are written.

    Returns:
        ``path``.

    Raises:
        InputError: no rows, or rows of different shapes.
    """
    shapes = {name: tuple(images.shape) for name, images in rows.items()}
    if len(set(shapes.values())) != 1:
        raise InputError(f"comparison grid: rows must be of one shape, got {shapes or 'no rows'}")
    count = next(iter(shapes.values()))[0]
    labels = list(map(str, range(count))) if column_labels is None else column_labels
    stacked = np.concatenate([np.asarray(images) for images in rows.values()])
    return image_grid(stacked, count, path, list(rows), labels, title, scale, forms)


def class_sheet(
    images: Images,
    labels: Sequence[int],
    path: Path | str,
    names: Mapping[int, str] | None = None,
    title: str | None = None,
    scale: int | None = None,
) -> Path:
    """Write samples of one model, one column per class (the paper's Figures 15 and 16).

    Args:
        images: uint8 0..255, shape (N, C, H, W), on the CPU.
        labels: class of each image; columns are in the order of the classes, their images in the
            given order, as many as the class with the fewest has.
        path: PNG file to write; a PDF and an SVG are written beside it.
        names: of the classes; default: their numbers.
        title: line above everything, such as the name of the model and its depth.
        scale: see `image_grid`.

    Returns:
        ``path``.

    Raises:
        InputError: images of another type or shape, or labels of another number.
    """
    if len(labels) != len(images):
        raise InputError(f"class sheet: {len(labels)} labels for {len(images)} images")
    array, classes = np.asarray(images), np.asarray(labels)
    found = np.unique(classes)
    places = [np.flatnonzero(classes == number) for number in found]
    rows = min(map(len, places), default=0)
    written = [(names or {}).get(int(number), str(number)) for number in found]
    chosen = array[np.stack([own[:rows] for own in places], axis=1).ravel()] if rows else array
    return image_grid(chosen, max(len(found), 1), path, None, written, title, scale, FORMS)


@styled
def side_by_side(
    models: Mapping[str, Images],
    columns: int,
    path: Path | str,
    title: str | None = None,
    scale: int | None = None,
) -> Path:
    """Write one grid of samples per model next to each other (the paper's Figure 7).

    Args:
        models: images of every model by its name, in order; each of the same shape
            (N, C, H, W), uint8 0..255, on the CPU. Images of one noise stand in the same place.
        columns: images in a row of one model's grid.
        path: PNG file to write; a PDF and an SVG are written beside it.
        title: line above everything.
        scale: see `image_grid`.

    Returns:
        ``path``.

    Raises:
        InputError: no model, or images of different shapes.
    """
    shapes = {name: tuple(images.shape) for name, images in models.items()}
    if len(set(shapes.values())) != 1:
        said = shapes or "no model"
        raise InputError(f"side by side: images of all models must be of one shape, got {said}")
    mosaics = [_mosaic(_tiles(images), columns, scale) for images in models.values()]
    apart = 4 * mosaics[0][1]
    height = mosaics[0][0].shape[0]
    # A grid is at least as wide as the name above it.
    least = _extent(list(models), fontsize=8.5, parse_math=False)[0]
    width = max(mosaics[0][0].shape[1], least)
    page = np.full((height, len(mosaics) * (width + apart) - apart, 3), 255, np.uint8)
    for index, (mosaic, _) in enumerate(mosaics):
        left = index * (width + apart) + (width - mosaic.shape[1]) // 2
        page[:, left : left + mosaic.shape[1]] = mosaic
    return _write(page, 1, len(mosaics), apart, path, None, list(models), title, FORMS)


def _tiles(images: Images) -> NDArray[np.uint8]:
    """Validate and return colour images of shape (N, H, W, 3)."""
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
        raise InputError(
            "image grid: images must be uint8 of shape (N, 1 or 3, H, W) with N >= 1, got "
            f"{array.dtype} of shape {array.shape}"
        )
    return np.repeat(array, 3 // array.shape[1], axis=1).transpose(0, 2, 3, 1)


def _check_labels(name: str, labels: Sequence[str] | None, count: int) -> None:
    if labels is not None and len(labels) != count:
        raise InputError(f"image grid: {len(labels)} {name} for {count}: {list(labels)}")


def _mosaic(
    tiles_NHW3: NDArray[np.uint8], columns: int, scale: int | None
) -> tuple[NDArray[np.uint8], int]:
    """White canvas with the enlarged tiles on it, shape (Y, X, 3), and pixels between tiles."""
    if columns < 1 or (scale is not None and scale < 1):
        raise InputError(f"image grid: columns={columns} and scale={scale} must be at least 1")
    scale = scale or max(1, round(TILE_SIDE / tiles_NHW3.shape[2]))
    gap = max(2, round(0.07 * scale * tiles_NHW3.shape[2]))
    large = tiles_NHW3.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = large.shape
    num_rows = -(-count // columns)
    canvas = np.full(
        (num_rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8
    )
    for index, tile in enumerate(large):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return canvas, gap


def _write(
    mosaic: NDArray[np.uint8],
    num_rows: int,
    columns: int,
    gap: int,
    path: Path | str,
    row_labels: Sequence[str] | None,
    column_labels: Sequence[str] | None,
    title: str | None,
    forms: Sequence[str],
) -> Path:
    """Put the labels around the mosaic; its pixels are copied, never resampled."""
    height, width, _ = mosaic.shape
    style = {"fontsize": 8.5, "color": INK, "parse_math": False}
    title_style = {"fontsize": 10, "color": INK, "parse_math": False}
    left, label_height = _extent(row_labels, **style)
    left = MARGIN + (left + LABEL_GAP if row_labels is not None else 0)
    top = MARGIN
    if column_labels is not None:
        label_height = _extent(column_labels, **style)[1]
        top += label_height + LABEL_GAP
    title_width, title_height = _extent([title] if title else None, **title_style)
    if title:
        top += title_height + LABEL_GAP
    page_width = left + max(width, title_width) + MARGIN
    page_height = top + height + MARGIN

    figure = Figure(
        figsize=(page_width / DOTS_PER_INCH, page_height / DOTS_PER_INCH), dpi=DOTS_PER_INCH
    )
    figure.figimage(mosaic, xo=left, yo=MARGIN, origin="upper")

    def write(x: float, y: float, text: str, **how: Any) -> None:
        figure.text(x / page_width, 1 - y / page_height, text, **how)

    tile_width, tile_height = (width + gap) / columns, (height + gap) / num_rows
    for row, text in enumerate(row_labels or ()):
        y = top + row * tile_height + (tile_height - gap) / 2
        write(left - LABEL_GAP, y, text, ha="right", va="center_baseline", **style)
    for column, text in enumerate(column_labels or ()):
        x = left + column * tile_width + (tile_width - gap) / 2
        write(x, top - LABEL_GAP, text, ha="center", va="bottom", **style)
    if title:
        write(left, MARGIN, title, ha="left", va="top", **title_style)
    return save_figure(figure, path, DOTS_PER_INCH, forms)


def _extent(texts: Sequence[str] | None, **style: Any) -> tuple[int, int]:
    """Width of the widest and height of the highest text, in pixels."""
    if not texts:
        return 0, 0
    figure = Figure(dpi=DOTS_PER_INCH)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [figure.text(0, 0, text, **style).get_window_extent(renderer) for text in texts]
    return round(max(box.width for box in boxes)), round(max(box.height for box in boxes))
