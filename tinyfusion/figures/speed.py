"""Measured speed-up over the share of parameters removed (TinyFusion, figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import COLOURS, FAINT, INK, new_figure, save_figure, styled

_TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@styled
def speed_by_ratio(
    series: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | str, title: str | None = None
) -> Path:
    """Draw one curve per way of pruning, and the line on which speed grows as parameters go.

    Args:
        series: points by the name of their way of pruning. A point has ``ratio``, the share of
            parameters removed in [0, 1), ``speed_up`` over the unpruned model, and, if known,
            ``label``, which is written beside it, and ``speed_up_q1`` and ``speed_up_q3``,
            between which a bar is drawn.
        path: PNG file to write.
        title: line above the figure.

    Returns:
        ``path``.

    Raises:
        InputError: no point, or one that is out of range.
    """
    if not any(series.values()):
        raise InputError("speed by ratio: there is no point to draw")
    for name, points in series.items():
        for point in points:
            if not 0 <= point["ratio"] < 1 or point["speed_up"] <= 0:
                raise InputError(
                    f"speed by ratio: {name} has a point with ratio={point['ratio']} and "
                    f"speed_up={point['speed_up']}; valid: 0 <= ratio < 1, speed_up > 0"
                )
    figure, axes = new_figure(5.2, 3.6)
    largest = max(point["ratio"] for points in series.values() for point in points)
    ratios = np.linspace(0.0, largest, 200)
    axes.plot(
        ratios,
        1 / (1 - ratios),
        color=FAINT,
        linestyle="--",
        linewidth=1.2,
        label="linear: 1 / (1 - share removed)",
    )
    for index, (name, points) in enumerate(series.items()):
        ordered = sorted(points, key=lambda point: point["ratio"])
        axes.plot(
            [point["ratio"] for point in ordered],
            [point["speed_up"] for point in ordered],
            color=COLOURS[index % len(COLOURS)],
            marker="os^D"[index % 4],
            markersize=4,
            linewidth=1.2,
            label=name,
        )
        spreads = [point for point in ordered if "speed_up_q1" in point]
        axes.vlines(
            [point["ratio"] for point in spreads],
            [point["speed_up_q1"] for point in spreads],
            [point["speed_up_q3"] for point in spreads],
            color=COLOURS[index % len(COLOURS)],
            # Broad and pale, so that labels in front of it can be read.
            linewidth=3.0,
            alpha=0.25,
        )
        for point in ordered:
            if point.get("label"):
                axes.annotate(
                    point["label"],
                    (point["ratio"], point["speed_up"]),
                    # The first curve's labels above it, the others' below.
                    xytext=(-3, 4) if index == 0 else (3, -9),
                    textcoords="offset points",
                    ha="right" if index == 0 else "left",
                    fontsize=6.5,
                    color=COLOURS[index % len(COLOURS)],
                )
    # Equal factors are equal distances, so that small and large speed-ups can both be read.
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if low <= tick <= high]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}x"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("parameters removed")
    axes.set_ylabel("measured speed-up")
    axes.grid(axis="y", linewidth=0.3, alpha=0.5)
    axes.legend(loc="upper left")
    if title:
        axes.set_title(title, loc="left", color=INK)
    return save_figure(figure, path)
