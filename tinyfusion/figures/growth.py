"""Cost of a step over sizes of network and batch: measured points, and the model behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import COLOURS, INK, save_figure, styled

MARKERS = "os^D"


class Curve(NamedTuple):
    """One kind of work along one axis.

    Attributes:
        x: sizes along the axis, ascending.
        measured: what was measured at them.
        model: what the model says of them.
        held_out: which of them the model was not fitted to.
    """

    x: Sequence[int]
    measured: Sequence[float]
    model: Sequence[float]
    held_out: Sequence[bool]


Panels = Mapping[str, Mapping[str, Mapping[str, Curve]]]
"""Curves by what is measured (with its unit), axis and kind of work."""


@styled
def growth(panels: Panels, path: Path | str, title: str | None = None) -> Path:
    """Draw one row of panels for each figure that is measured, one column for each axis.

    Args:
        panels: the curves; both axes of every panel are logarithmic.
        path: PNG file to write; a PDF and an SVG are written beside it.
        title: line above the figure.

    Returns:
        ``path``.

    Raises:
        InputError: there is nothing to draw.
    """
    columns = list(dict.fromkeys(axis for row in panels.values() for axis in row))
    if not any(curves for row in panels.values() for curves in row.values()):
        raise InputError("growth of cost: there is nothing to draw")
    figure = Figure(
        figsize=(2.1 * len(columns) + 0.4, 2.3 * len(panels) + 0.5), layout="constrained"
    )
    grid = figure.subplots(len(panels), len(columns), sharex="col", sharey="row", squeeze=False)
    drawn: dict[str, int] = {}
    for line, (what, row) in zip(grid, panels.items(), strict=True):
        for axes, name in zip(line, columns, strict=True):
            axes.set_xscale("log")
            axes.set_yscale("log")
            ticks: set[int] = set()
            for work, curve in row.get(name, {}).items():
                number = drawn.setdefault(work, len(drawn))
                look = {"color": COLOURS[number % len(COLOURS)], "markersize": 4, "linestyle": ""}
                marker = MARKERS[number % len(MARKERS)]
                axes.plot(curve.x, curve.model, color=look["color"], linewidth=1.0)
                for unseen in (False, True):
                    at = [i for i, held in enumerate(curve.held_out) if held == unseen]
                    axes.plot(
                        [curve.x[i] for i in at],
                        [curve.measured[i] for i in at],
                        marker,
                        markerfacecolor="white" if unseen else look["color"],
                        **look,
                    )
                ticks |= set(curve.x)
            axes.xaxis.set_major_locator(FixedLocator(_apart(sorted(ticks))))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.grid(axis="y", linewidth=0.3, alpha=0.5)
        line[0].set_ylabel(what)
    for axes, name in zip(grid[-1], columns, strict=True):
        axes.set_xlabel(name)
    handles = [
        grid[0][0].plot([], [], marker, color=colour, markersize=4, linewidth=1.0, label=work)[0]
        for work, marker, colour in zip(drawn, cycle(MARKERS), cycle(COLOURS), strict=False)
    ]
    handles += [
        grid[0][0].plot(
            [], [], "o", color=INK, markerfacecolor=face, markersize=4, linestyle="", label=label
        )[0]
        for face, label in ((INK, "fitted to"), ("white", "not fitted to"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    return save_figure(figure, path)


def _apart(ticks: Sequence[int]) -> list[int]:
    """Those of ascending ticks that leave room for their labels on a logarithmic axis."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or tick >= 1.8 * kept[-1]:
            kept.append(tick)
    return kept
