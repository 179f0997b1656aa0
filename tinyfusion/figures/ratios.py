"""How many times larger figures of several methods are than those of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import GREY, INK, SPREAD_LABEL, save_figure, styled
from tinyfusion.figures.looks import looks

MOST = 4.0
"""Larger ratios are drawn here, with their number: what matters is what lies around 1."""

Ratios = Mapping[str, Mapping[str, tuple[float, float]]]
"""By method and place along the axis: mean of the logarithm of the ratio, and half the length of
the bar through it."""


@styled
def ratio_panels(panels: Mapping[str, Ratios], path: Path | str, base: str) -> Path:
    """Draw one panel of points for every figure, on a logarithmic axis.

    Args:
        panels: ratios by title; all with the same methods and places, of which some may lack.
        path: PNG file to write; a PDF and an SVG are written beside it.
        base: the method that the others are compared with, whose ratio is 1.

    Returns:
        ``path``.

    Raises:
        InputError: there is nothing to draw.
    """
    places = list(
        dict.fromkeys(p for rows in panels.values() for row in rows.values() for p in row)
    )
    methods = list(dict.fromkeys(m for rows in panels.values() for m, row in rows.items() if row))
    chosen = looks(methods)
    if not places:
        raise InputError("ratios: there is nothing to draw")
    width = max(6.0, 1.2 + 0.85 * len(places))  # with the legend beside
    figure = Figure(figsize=(width, 2.3 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        axes.axhline(1.0, color=INK, linewidth=1.0)
        for number, (method, (colour, marker)) in enumerate(chosen.items()):
            row = rows.get(method, {})
            beside = 0.7 * ((number + 0.5) / len(methods) - 0.5)
            for place, (middle, spread) in row.items():
                x, ends = places.index(place) + beside, (exp(middle - spread), exp(middle + spread))
                if exp(middle) > MOST:
                    axes.plot(x, MOST, marker, color=colour, markersize=4, linestyle="")
                    axes.annotate(
                        f"{exp(middle):.2g}", (x, MOST), (0, 4), textcoords="offset points",
                        ha="center", va="bottom", rotation=90, fontsize=7.5, color=INK,
                    )  # fmt: skip
                    continue
                axes.plot([x, x], [min(end, MOST) for end in ends], color=colour, linewidth=1.0)
                axes.plot(x, exp(middle), marker, color=colour, markersize=4, linestyle="")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel(f"ratio to {base}")
        # Room for the numbers of what lies beyond.
        axes.set_title(f"{title} ↓", loc="left", color=INK, pad=18)
        axes.grid(axis="y", linewidth=0.3, alpha=0.5)
        for border in range(1, len(places)):
            axes.axvline(border - 0.5, color=INK, linewidth=0.3, alpha=0.3)
    grid[-1].set_xticks(range(len(places)), places)
    grid[-1].set_xlim(-0.5, len(places) - 0.5)
    handles = [
        grid[0].plot([], [], marker, color=colour, markersize=4, linestyle="", label=method)[0]
        for method, (colour, marker) in chosen.items()
    ]
    line = grid[0].plot([], [], color=INK, linewidth=1.0, label=base)[0]
    if any(s for rows in panels.values() for row in rows.values() for _, s in row.values()):
        handles.append(grid[0].plot([], [], color=GREY, linewidth=1.0, label=SPREAD_LABEL)[0])
    figure.legend(handles=[line, *handles], loc="outside right upper")
    return save_figure(figure, path)
