"""Labelled points on logarithmic axes, one panel for each kind of result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import COLOURS, FAINT, INK, save_figure, styled

PANEL, LARGE_PANEL = (4.3, 3.9), (6.2, 4.8)
"""Width and height in inches."""

MANY = 10
"""More points than this need a large panel for their labels."""

MARKER = 4.0
"""Radius of the room that a point takes among labels, in pixels at 100 dots per inch."""


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
        path: PNG file to write.
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
    for axes, (title, points) in zip(grid, drawn.items(), strict=True):
        _draw_points(axes, points)
        axes.set_title(title, loc="left", color=INK)
        axes.set_xlabel(x_label)
    grid[0].set_ylabel(y_label)
    for axis in (grid[0].xaxis, grid[0].yaxis):
        _round_ticks(axis)
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


def _draw_points(axes: Axes, points: Sequence[Point]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for point in points:
        if point.y_spread:
            # A bar that reaches zero has no end on a logarithmic axis.
            low = max(point.y - point.y_spread, 0.5 * point.y)
            axes.plot([point.x] * 2, [low, point.y + point.y_spread], color=FAINT, linewidth=1.2)
    axes.plot(
        [p.x for p in points], [p.y for p in points], "o", color=COLOURS[0], markersize=5, zorder=3
    )
    axes.grid(which="major", linewidth=0.3, alpha=0.5)
    axes.margins(0.16, 0.12)


def _round_ticks(axis: Axis) -> None:
    low, high = axis.get_view_interval()
    # Round numbers of a logarithmic axis may all lie outside a narrow range.
    narrow = high < 8 * low
    axis.set_major_locator(MaxNLocator(nbins=5) if narrow else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def _label(axes: Axes, points: Sequence[Point], renderer: RendererAgg) -> None:
    """Write each name where it covers no point and no other name, as near as there is room."""
    places = [tuple(axes.transData.transform((p.x, p.y))) for p in points]
    taken = [Bbox.from_extents(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in places]
    frame = axes.get_window_extent()
    # Lone points have room anywhere; those in a crowd choose first.
    crowd = [sum(math.dist(a, b) < 60 for b in places) for a in places]
    for index in sorted(range(len(points)), key=lambda i: -crowd[i]):
        best, least = None, math.inf
        for dx, dy, side in _offsets():
            text = axes.annotate(
                points[index].label,
                (points[index].x, points[index].y),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=7.5,
                color=INK,
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkB": 2}
                if math.hypot(dx, dy) > 12
                else None,
            )
            # Room of the words alone, without the line to the point.
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer).padded(1)
            others = [other for i, other in enumerate(taken) if i != index]
            covered = sum(_overlap(box, other) for other in others) + 5 * _outside(box, frame)
            covered += _ambiguous(box, places[index], places[:index] + places[index + 1 :])
            if covered < least:
                if best is not None:
                    best.remove()
                best, least, room = text, covered, box
            else:
                text.remove()
            if least == 0:
                break
        taken.append(room)


def _offsets() -> Iterator[tuple[float, float, str]]:
    """Places for a label around its point, in points, the nearest first."""
    for distance in (6, 12, 20, 30, 42):
        for turn in (0, 180, 45, -45, 135, -135, 75, -75, 105, -105):
            angle = math.radians(turn)
            side = "center" if abs(turn) in (75, 105) else "left" if abs(turn) < 90 else "right"
            yield distance * math.cos(angle), distance * math.sin(angle), side


def _overlap(a: Bbox, b: Bbox) -> float:
    shared = Bbox.intersection(a, b)
    return 0.0 if shared is None else shared.width * shared.height


def _ambiguous(box: Bbox, own: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """How much nearer a label is to another point than to its own; weighed like an area."""
    nearest = min((_distance(box, other) for other in others), default=math.inf)
    return MARKER * max(0.0, _distance(box, own) + MARKER - nearest)


def _distance(box: Bbox, place: Sequence[float]) -> float:
    x, y = place
    return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))


def _outside(box: Bbox, frame: Bbox) -> float:
    """Area of a label beyond the axes; names may not hang out of the picture."""
    return box.width * box.height - _overlap(box, frame)
