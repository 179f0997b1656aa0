"""Where chosen sets stand among random ones: the paper's Figure 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from tinyfusion.figures.canvas import COLOURS, FAINT, INK, new_figure, save_figure, styled

WIDTH, HEIGHT, ROW = 6.4, 2.2, 0.15
"""Width of the figure, height of its axes, and height of a row of labels, in inches."""

LEFT, RIGHT, BELOW = 0.35, 0.1, 0.5
"""Room around the axes, in inches."""

LABEL_INDENT, GAP = 0.05, 0.06
"""Room between a line and its label, and behind that, in inches."""

GREY = "#6E6E6E"


@styled
def loss_density(
    losses: Sequence[float],
    path: Path | str,
    marks: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Path:
    """Draw the density of losses over a logarithmic axis, with marks.

    Args:
        losses: of the candidates; those that are not finite or not positive are counted in the
            title of the axis and left out.
        path: PNG file to write.
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
    rows = _rows((logs - low) / (high - low) * (WIDTH - LEFT - RIGHT), widths)

    above = ROW * (max(rows) + 1.4) + (0.25 if title else 0.0)
    total = BELOW + HEIGHT + above
    figure.set_size_inches(WIDTH, total)
    inside = (WIDTH - LEFT - RIGHT) / WIDTH
    axes.set_position((LEFT / WIDTH, BELOW / total, inside, HEIGHT / total))
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    _draw_density(axes, values)
    _draw_lines(axes, lines, rows)
    _format_ticks(axes)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("density of candidates")
    notes = [f"{left_out:,} not finite"] if left_out else []
    notes += [f"{name}: not finite" for name in marks if name not in drawn]
    axes.set_xlabel("calibration loss" + (f" ({', '.join(notes)})" if notes else ""))
    if title:
        top = 1 - 0.08 / total
        figure.text(LEFT / WIDTH, top, title, va="top", fontsize=10, color=INK)
    return save_figure(figure, path)


class Line(NamedTuple):
    """A vertical line: its place, label, colour and style."""

    place: float
    label: str
    colour: str
    style: str


def _lines(values: NDArray[np.float64], marks: Mapping[str, float]) -> list[Line]:
    """All lines, from right to left."""
    own = {"min": values[0], "median": values[len(values) // 2], "max": values[-1]}
    lines = [Line(float(v), f"{name} {v:.3g}", GREY, ":") for name, v in own.items()]
    for number, (name, value) in enumerate(marks.items()):
        style = "-" if number < len(COLOURS) else "--"
        colour = COLOURS[number % len(COLOURS)]
        lines.append(Line(value, f"{name} {value:.3g}", colour, style))
    return sorted(lines, reverse=True)


def _inches(figure: Figure, label: str) -> float:
    """Width of a label."""
    text = figure.text(0, 0, label, fontsize=8)
    width = text.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / figure.dpi
    text.remove()
    return width


def _draw_density(axes: Axes, values: NDArray[np.float64]) -> None:
    """Kernel density of the logarithms, and a stroke per candidate where these are few."""
    logs = np.log10(values)
    lower, upper = np.percentile(logs, [25, 75])
    # Silverman's rule, with the spread of the bulk: a few extreme losses don't blur it.
    spread = min(logs.std(), (upper - lower) / 1.34) or logs.std() or 0.01
    width = 0.9 * spread * len(logs) ** -0.2
    low, high = logs[0] - 3 * width, logs[-1] + 3 * width
    # Counts on a fine grid first: the kernel then costs the same for any number of candidates.
    bins = int(np.clip((high - low) / width * 8, 200, 20_000))
    counts, edges = np.histogram(logs, bins=bins, range=(low, high))
    step = edges[1] - edges[0]
    reach = min(int(4 * width / step) + 1, (bins - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    density = np.convolve(counts, kernel, mode="same")
    places = 10 ** ((edges[:-1] + edges[1:]) / 2)
    axes.fill_between(places, density, color=FAINT, alpha=0.6, linewidth=0)
    axes.plot(places, density, color=INK, linewidth=0.8)
    if len(values) <= 200:
        stroke = blended_transform_factory(axes.transData, axes.transAxes)
        axes.vlines(values, 0, 0.03, transform=stroke, color=INK, linewidth=0.5)


def _draw_lines(axes: Axes, lines: Sequence[Line], rows: Sequence[int]) -> None:
    mixed = blended_transform_factory(axes.transData, axes.transAxes)
    for line, row in zip(lines, rows, strict=True):
        top = 1 + ROW * (row + 0.6) / HEIGHT
        axes.plot(
            [line.place, line.place],
            [0, top],
            transform=mixed,
            color=line.colour,
            linestyle=line.style,
            linewidth=1.0,
            clip_on=False,
        )
        axes.annotate(
            line.label,
            (line.place, top),
            (LABEL_INDENT * 72, 0),
            xycoords=mixed,
            textcoords="offset points",
            fontsize=8,
            color=line.colour,
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
