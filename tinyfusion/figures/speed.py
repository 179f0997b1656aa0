"""Measured speed-up over the share of parameters removed (TinyFusion, figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import FAINT, GREY, HIGHER, INK, new_figure, save_figure, styled
from tinyfusion.figures.looks import looks

_TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@styled
def speed_by_ratio(
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path | str,
    title: str | None = None,
    printed: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Draw one curve per way of pruning, and the line on which speed grows as parameters go.

    Args:
        series: points by the name of their way of pruning. A point has ``ratio``, the share of
            parameters removed in [0, 1), ``speed_up`` over the unpruned model, and, if known,
            ``label``, which is written beside it unless nothing was removed, and ``speed_up_q1``
            and ``speed_up_q3``, between which a bar is drawn.
        path: PNG file to write; a PDF and an SVG are written beside it.
        title: line above the figure.
        printed: points of a publication, drawn faintly beside, such as `printed_speed` gives.

    Returns:
        ``path``.

    Raises:
        InputError: no point, or one that is out of range.
    """
    if not any(series.values()):
        raise InputError("speed by ratio: there is no point to draw")
    printed = printed or {}
    for name, points in (*series.items(), *printed.items()):
        for point in points:
            if not 0 <= point["ratio"] < 1 or point["speed_up"] <= 0:
                raise InputError(
                    f"speed by ratio: {name} has a point with ratio={point['ratio']} and "
                    f"speed_up={point['speed_up']}; valid: 0 <= ratio < 1, speed_up > 0"
                )
    figure, axes = new_figure(5.2, 3.6)
    every = [point for points in (*series.values(), *printed.values()) for point in points]
    largest = max(point["ratio"] for point in every)
    ratios = np.linspace(0.0, largest, 200)
    axes.plot(
        ratios,
        1 / (1 - ratios),
        color=FAINT,
        linestyle="--",
        linewidth=1.2,
        label="linear: 1 / (1 - share removed)",
    )
    chosen = looks([name for name, points in series.items() if points])
    barred = False
    for name, points in printed.items():
        (own,) = looks([name]).values()
        axes.plot(
            [point["ratio"] for point in points],
            [point["speed_up"] for point in points],
            color=own.colour,
            marker=own.marker,
            markersize=6,
            markerfacecolor="none",
            markeredgewidth=0.8,
            linestyle="",
            alpha=0.45,
            label=name,
        )
    for index, (name, look) in enumerate(chosen.items()):
        points = series[name]
        ordered = sorted(points, key=lambda point: point["ratio"])
        axes.plot(
            [point["ratio"] for point in ordered],
            [point["speed_up"] for point in ordered],
            color=look.colour,
            marker=look.marker,
            markersize=4,
            linewidth=1.2,
            label=name,
        )
        spreads = [point for point in ordered if "speed_up_q1" in point]
        barred = barred or bool(spreads)
        axes.vlines(
            [point["ratio"] for point in spreads],
            [point["speed_up_q1"] for point in spreads],
            [point["speed_up_q3"] for point in spreads],
            color=look.colour,
            # Broad and pale, so that labels in front of it can be read.
            linewidth=3.0,
            alpha=0.25,
        )
        for point in ordered:
            if point.get("label") and point["ratio"] > 0:  # all begin at the whole model
                axes.annotate(
                    point["label"],
                    (point["ratio"], point["speed_up"]),
                    # The first curve's labels above it, the others' below.
                    xytext=(-3, 4) if index == 0 else (3, -9),
                    textcoords="offset points",
                    ha="right" if index == 0 else "left",
                    fontsize=6.5,
                    color=look.colour,
                    # Readable where it lies on the line or on a mark of the publication.
                    path_effects=[withStroke(linewidth=1.5, foreground="white")],
                )
    # Equal factors are equal distances, so that small and large speed-ups can both be read.
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if low <= tick <= high]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}x"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("parameters removed")
    axes.set_ylabel(f"measured speed-up, {HIGHER}")
    axes.grid(axis="y", linewidth=0.3, alpha=0.5)
    handles, _ = axes.get_legend_handles_labels()
    if barred:
        what = "bar: first to third quartile of the rounds"
        handles.append(Line2D([], [], color=GREY, linewidth=3.0, alpha=0.4, label=what))
    axes.legend(handles=handles, loc="upper left")
    if title:
        axes.set_title(title, loc="left", color=INK)
    return save_figure(figure, path)


def printed_speed(figure: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Points of the paper's figure 4, for ``printed`` of `speed_by_ratio`.

    Args:
        figure: as in ``paper_tables.yaml``. The shares removed by width pruning are not printed:
            their points stand at what that file guesses, and their name says so.
    """
    found = {}
    for series in figure["series"]:
        guessed, points = False, []
        for point in series["points"]:
            percent = point["compression_ratio_percent"]
            guessed = guessed or percent is None
            percent = point["guess_percent"] if percent is None else percent
            points.append({"ratio": percent / 100, "speed_up": point["speed_up"]})
        found[f"{series['name']}, paper{' (shares guessed)' if guessed else ''}"] = points
    return found
