"""Labelled points on logarithmic axes, one panel for each kind of result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import (
    FAINT,
    GREY,
    INK,
    SPREAD_LABEL,
    low_end,
    round_ticks,
    save_figure,
    styled,
)
from tinyfusion.figures.labels import Labels, place_labels
from tinyfusion.figures.looks import Look, looks

PANEL, LARGE_PANEL = (4.3, 3.9), (6.2, 4.8)
"""Width and height in inches."""

MANY = 10
"""More points than this need a large panel for their labels."""

MARKER, PADDING = 5.0, 2.0
"""Radius of the room that a point takes among labels, and room around these, in pixels at 100
dots per inch."""


class Point(NamedTuple):
    """One labelled result.

    Attributes:
        label: its name.
        x: horizontal value, positive.
        y: vertical value, positive.
        y_spread: half the length of the bar through it; ``None`` for no bar.
    """

    label: str
    x: float
    y: float
    y_spread: float | None = None


@styled
def scatter(
    panels: Mapping[str, Sequence[Point]], path: Path | str, x_label: str, y_label: str
) -> Path:
    """Draw one panel of labelled points for every entry, all with the same axes.

    Args:
        panels: points by title; those with a value that is not finite and positive are left out,
            and those that lie in one place share a label.
        path: PNG file to write; a PDF and an SVG are written beside it.
        x_label: what the horizontal values are, with their unit.
        y_label: the same of the vertical ones.

    Returns:
        ``path``.

    Raises:
        InputError: no point can be drawn.
    """
    drawn = {
        title: _merged(p for p in points if _drawable(p.x) and _drawable(p.y))
        for title, points in panels.items()
    }
    drawn = {title: points for title, points in drawn.items() if points}
    if not drawn:
        raise InputError("scatter: there is no point to draw")
    width, height = LARGE_PANEL if max(map(len, drawn.values())) > MANY else PANEL
    figure = Figure(figsize=(width * len(drawn), height), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(drawn), sharex=True, sharey=True, squeeze=False)[0]
    chosen = looks(point.label for points in drawn.values() for point in points)
    for axes, (title, points) in zip(grid, drawn.items(), strict=True):
        _draw_points(axes, points, chosen)
        axes.set_title(title, loc="left", color=INK)
        axes.set_xlabel(x_label)
    grid[0].set_ylabel(y_label)
    for axis in (grid[0].xaxis, grid[0].yaxis):
        round_ticks(axis)
    if any(point.y_spread for points in drawn.values() for point in points):
        bar = Line2D([], [], color=FAINT, linewidth=1.2, label=SPREAD_LABEL)
        figure.legend(handles=[bar], loc="outside lower right")
    # Labels are placed in the picture as it will be: axes must not move any more.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, points in zip(grid, drawn.values(), strict=True):
        _label(axes, points, canvas.get_renderer())
    return save_figure(figure, path)


def _drawable(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _merged(points: Iterable[Point]) -> list[Point]:
    """One point for all that lie in one place."""
    places: dict[tuple[float, float], list[Point]] = {}
    for point in points:
        places.setdefault((point.x, point.y), []).append(point)
    return [own[0]._replace(label=", ".join(p.label for p in own)) for own in places.values()]


def _draw_points(axes: Axes, points: Sequence[Point], looks_of: Mapping[str, Look]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for point in points:
        if point.y_spread:
            ends = [low_end(point.y, point.y_spread), point.y + point.y_spread]
            axes.plot([point.x] * 2, ends, color=FAINT, linewidth=1.2)
    for point in points:
        colour, marker = looks_of[point.label]
        axes.plot(point.x, point.y, marker, color=colour, markersize=5, zorder=3)
    axes.grid(which="major", linewidth=0.3, alpha=0.5)
    axes.margins(0.2, 0.18)


def _label(axes: Axes, points: Sequence[Point], renderer: RendererAgg) -> Labels:
    """Write each name where it covers no point and no other name, as near as there is room."""
    style: dict[str, Any] = {"fontsize": 7.5, "color": INK, "ha": "center", "va": "center"}
    sizes = []
    for point in points:
        text = axes.text(0, 0, point.label, **style)
        box = Text.get_window_extent(text, renderer)
        sizes.append((box.width + 2 * PADDING, box.height + 2 * PADDING))
        text.remove()
    places = axes.transData.transform([(p.x, p.y) for p in points])
    bars = []
    for point in points:
        if point.y_spread:
            ends = (low_end(point.y, point.y_spread), point.y + point.y_spread)
            (x, low), (_, high) = axes.transData.transform([(point.x, end) for end in ends])
            bars.append((x - 1, low, x + 1, high))
    frame = np.array(axes.get_window_extent().extents)
    labels = place_labels(
        np.array(sizes), places, frame, np.array(bars, dtype=float).reshape(-1, 4), MARKER
    )
    in_points = 72 / axes.figure.dpi
    for point, place, box, leader, far in zip(points, places, *labels, strict=True):
        at = (point.x, point.y)
        centre = ((box[:2] + box[2:]) / 2 - place) * in_points
        axes.annotate(point.label, at, xytext=tuple(centre), textcoords="offset points", **style)
        if far:
            axes.annotate(
                "",
                at,
                xytext=tuple((leader[:2] - place) * in_points),
                textcoords="offset points",
                arrowprops={
                    "arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3,
                },
            )  # fmt: skip
    return labels
