"""Where chosen sets stand among random ones: the paper's Figure 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import FAINT, GREY, INK, new_figure, save_figure, styled
from tinyfusion.figures.looks import Look, looks

WIDTH, HEIGHT, ROW = 6.4, 2.2, 0.15
"""Width of the figure, height of its axes, and height of a row of labels, in inches."""

LEFT, RIGHT, BELOW = 0.35, 0.1, 0.5
"""Room around the axes, in inches."""

LABEL_INDENT, GAP = 0.075, 0.06
"""Room between a line and its label, and behind that, in inches."""

APART, DASH = 0.03, 0.045
"""Lines nearer to each other, in inches, share their length in dashes of this many inches."""


@styled
def loss_density(
    losses: Sequence[float],
    path: Path | str,
    marks: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Path:
    """Draw the density of losses over a logarithmic axis, with marks.

    The curve is a kernel estimate of the logarithms that is reflected at the least and the largest
    loss, so that it ends there and loses no mass. Marks in one place take turns along their line,
    and their labels are stacked.

    Args:
        losses: of the candidates; those that are not finite or not positive are counted in the
            title of the axis and left out.
        path: PNG file to write; a PDF and an SVG are written beside it.
        marks: losses to mark, by name; those that can't be drawn are named in the axis's title.
        title: line above the figure.

    Returns:
        ``path``.

    Raises:
        InputError: no loss is finite and positive.
    """
    values = np.sort(np.asarray(losses, dtype=float))
    left_out = len(values)
    values = values[np.isfinite(values) & (values > 0)]
    left_out -= len(values)
    if not len(values):
        raise InputError("loss density: there is no finite, positive loss to draw")
    marks = {name: float(value) for name, value in (marks or {}).items()}
    drawn = {name: value for name, value in marks.items() if np.isfinite(value) and value > 0}
    lines = _lines(values, drawn)

    figure, axes = new_figure(WIDTH, HEIGHT)
    figure.set_layout_engine("none")  # sizes are in inches here: labels must fit
    widths = np.array([LABEL_INDENT + _inches(figure, line.label) + GAP for line in lines])
    logs = np.log10([line.place for line in lines])
    span = logs[0] - logs[-1] or 2.0
    low, high = logs[-1] - 0.03 * span, logs[0] + 0.03 * span
    # The labels of the last lines need room on the right, too.
    shares = np.minimum(widths / (WIDTH - LEFT - RIGHT), 0.6)
    high = max(high, *(low + (logs - low) / (1 - shares)))
    places = (logs - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    rows = _rows(places, widths)

    above = ROW * (max(rows) + 1.4) + (0.25 if title else 0.0)
    total = BELOW + HEIGHT + above
    figure.set_size_inches(WIDTH, total)
    inside = (WIDTH - LEFT - RIGHT) / WIDTH
    axes.set_position((LEFT / WIDTH, BELOW / total, inside, HEIGHT / total))
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    highest = _draw_density(axes, values)
    _draw_lines(axes, lines, rows, _turns(places))
    _format_ticks(axes)
    axes.set_ylim(0, 1.08 * highest)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("density of candidates")
    notes = [f"{left_out:,} not finite"] if left_out else []
    notes += [f"{name}: not finite" for name in marks if name not in drawn]
    axes.set_xlabel(f"calibration loss ({', '.join(['logarithmic axis', *notes])})")
    if title:
        top = 1 - 0.08 / total
        figure.text(LEFT / WIDTH, top, title, va="top", fontsize=10, color=INK)
    return save_figure(figure, path)


class Line(NamedTuple):
    """A vertical line: its place, its label, and its look if it is a mark."""

    place: float
    label: str
    look: Look | None


def _lines(values: NDArray[np.float64], marks: Mapping[str, float]) -> list[Line]:
    """All lines, from right to left."""
    own = {"min": values[0], "median": values[len(values) // 2], "max": values[-1]}
    lines = [Line(float(v), f"{name} {v:.3g}", None) for name, v in own.items()]
    chosen = looks(marks)
    lines += [Line(value, f"{name} {value:.3g}", chosen[name]) for name, value in marks.items()]
    return sorted(lines, key=lambda line: line[:2], reverse=True)


def _inches(figure: Figure, label: str) -> float:
    """Width of a label."""
    text = figure.text(0, 0, label, fontsize=8)
    width = text.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / figure.dpi
    text.remove()
    return width


def density_of(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Kernel density of the logarithms between the least and the largest value.

    Args:
        values: ascending, positive, not all equal.

    Returns:
        Places on the axis of the values, from the least to the largest, and the density there in
        shares of the candidates per decade.
    """
    logs = np.log10(values)
    lower, upper = np.percentile(logs, [25, 75])
    # Silverman's rule, with the spread of the bulk: a few extreme losses don't blur it.
    spread = min(logs.std(), (upper - lower) / 1.34) or logs.std()
    width = 0.9 * spread * len(logs) ** -0.2
    # Counts on a fine grid first: the kernel then costs the same for any number of candidates.
    bins = int(np.clip((logs[-1] - logs[0]) / width * 8, 200, 20_000))
    counts, edges = np.histogram(logs, bins=bins)
    step = edges[1] - edges[0]
    reach = min(int(4 * width / step) + 1, bins)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    kernel /= kernel.sum() * step * len(logs)
    density = np.convolve(np.pad(counts, reach, mode="symmetric"), kernel, mode="valid")
    places = np.concatenate([edges[:1], (edges[:-1] + edges[1:]) / 2, edges[-1:]])
    return 10**places, np.concatenate([density[:1], density, density[-1:]])


def _draw_density(axes: Axes, values: NDArray[np.float64]) -> float:
    """The density, and a stroke per candidate where these are few; returns the highest."""
    highest = 1.0
    if values[0] < values[-1]:
        places, density = density_of(values)
        highest = float(density.max())
        axes.fill_between(places, density, color=FAINT, alpha=0.6, linewidth=0)
        axes.plot(
            np.concatenate([places[:1], places, places[-1:]]),
            np.concatenate([[0.0], density, [0.0]]),
            color=INK,
            linewidth=0.8,
        )
    if len(values) <= 200:
        stroke = blended_transform_factory(axes.transData, axes.transAxes)
        axes.vlines(values, 0, 0.03, transform=stroke, color=INK, linewidth=0.5)
    return highest


def _turns(places: NDArray[np.float64]) -> list[tuple[int, int]]:
    """For each line its turn among those in its place, and how many these are.

    Args:
        places: of the lines, in inches, from right to left.
    """
    clusters: list[int] = [0]
    for right, left in pairwise(places):
        clusters.append(clusters[-1] + (right - left > APART))
    return [
        (clusters[:index].count(cluster), clusters.count(cluster))
        for index, cluster in enumerate(clusters)
    ]


def _draw_lines(
    axes: Axes, lines: Sequence[Line], rows: Sequence[int], turns: Sequence[tuple[int, int]]
) -> None:
    mixed = blended_transform_factory(axes.transData, axes.transAxes)
    for line, row, (turn, alike) in zip(lines, rows, turns, strict=True):
        top = 1 + ROW * (row + 0.6) / HEIGHT
        dash = 72 * DASH
        axes.plot(
            [line.place, line.place],
            [0, top],
            transform=mixed,
            color=line.look.colour if line.look else GREY,
            # Each of several lines in one place shows where the others have gaps.
            linestyle=(-turn * dash, (dash, (alike - 1) * dash))
            if alike > 1
            else "-"
            if line.look
            else ":",
            dash_capstyle="butt",
            linewidth=1.2,
            clip_on=False,
            # Marks before the lines of all candidates.
            zorder=3 if line.look else 2.5,
        )
        if line.look:
            axes.plot(
                line.place, top, line.look.marker, transform=mixed, color=line.look.colour,
                markersize=4.5, clip_on=False, zorder=4,
            )  # fmt: skip
        axes.annotate(
            line.label,
            (line.place, top),
            (LABEL_INDENT * 72, 0),
            xycoords=mixed,
            textcoords="offset points",
            fontsize=8,
            color=INK if line.look else GREY,
            va="center",
        )


def _rows(places: NDArray[np.float64], widths: NDArray[np.float64]) -> list[int]:
    """A row for the label of each line, so that nothing overlaps.

    Labels begin at their lines. One that would lie across the line of another mark goes above
    that mark's label.

    Args:
        places: of the lines, in inches, from right to left.
        widths: of the labels with the gap behind them, in inches.
    """
    rows: list[int] = []
    for place, width in zip(places, widths, strict=True):
        crossed = [row for row, other in zip(rows, places, strict=False) if other < place + width]
        rows.append(max(crossed, default=-1) + 1)
    return rows


def _format_ticks(axes: Axes) -> None:
    """Plain numbers, so many that a narrow range has some and a wide one is not crowded."""
    low, high = axes.get_xlim()
    decades = np.log10(high / low)
    subs = (
        (1.0,)
        if decades > 3
        else (1.0, 2.0, 5.0)
        if decades > 1
        else tuple(map(float, range(1, 10)))
    )
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=30))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
