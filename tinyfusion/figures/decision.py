"""How a decision came about: the paper's Figures 6 and 9-11.

Shape suffixes: R records, L units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import COLOURS, FAINT, INK, new_figure, save_figure, styled

_MAP = LinearSegmentedColormap.from_list("inclusion", ["#f2f0eb", COLOURS[0]])
"""Never white, which is the paper: a probability of 0 is a colour as well."""


class DecisionRecord(NamedTuple):
    """Where the choice stood after one step of mask learning.

    Attributes:
        step: optimiser steps taken.
        kept: units that would stay, by the averaged gates.
        inclusion: probability that each unit stays, by the averaged gates.
    """

    step: int
    kept: tuple[int, ...]
    inclusion: tuple[float, ...]


@styled
def decision_trace(
    trace: Sequence[DecisionRecord],
    path: Path | str,
    names: Sequence[str] | None = None,
    borders: Sequence[int] = (),
    groups: Sequence[int] = (),
    title: str | None = None,
) -> Path:
    """Draw the probability that each unit stays over the steps, one row a unit.

    A line runs between what would stay and what would go, so that a unit that changes sides can be
    seen at its step; what is decided at the end is marked at the right.

    Args:
        trace: records with ascending steps, at least one. Each is drawn up to its own step, from
            that of the one before, the first from 0.
        path: PNG file to write; a PDF and an SVG are written beside it.
        names: what the units are called; default: their numbers.
        borders: first units of further stacks, marked by a strong line.
        groups: first units of further groups of a scheme, marked by a thin one.
        title: line above the figure.

    Returns:
        ``path``.

    Raises:
        InputError: no records, steps out of order, or probabilities that are not one per unit in
            0..1.
    """
    probabilities = _checked(trace)
    depth = len(trace[0].inclusion)
    figure, axes = new_figure(6.4, max(3.0, 1.1 + 0.135 * depth))
    mesh = _draw_trace(axes, trace, *probabilities, size=5 if depth <= 40 else 3.5)
    for starts, colour, width in ((groups, FAINT, 0.5), (borders, INK, 1.2)):
        for start in starts:
            axes.axhline(start - 0.5, color=colour, linewidth=width)
    every = 1 if depth <= 14 or (names is not None and depth <= 80) else 2 if depth <= 40 else 4
    shown = list(range(0, depth, every))
    axes.set_yticks(shown, [str(n) if names is None else names[n] for n in shown])
    if names is not None:
        axes.tick_params("y", labelsize=6.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel("block" if names is None else "")
    if title:
        axes.set_title(title, loc="left", color=INK, pad=10)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=16, pad=0.02, anchor=(0, 1))
    bar.outline.set_linewidth(0.5)
    bar.set_ticks([0, 0.5, 1])
    bar.set_label("probability to stay")
    _add_legend(figure)
    return save_figure(figure, path)


@styled
def decision_panels(
    traces: Mapping[str, Sequence[DecisionRecord]],
    path: Path | str,
    columns: int = 3,
    title: str | None = None,
) -> Path:
    """Draw how several choices came about side by side, as the paper's Figures 9 to 11.

    Args:
        traces: records of each choice by what is written above its panel, filled row by row.
        path: PNG file to write; a PDF and an SVG are written beside it.
        columns: panels in a row.
        title: line above the figure.

    Returns:
        ``path``.

    Raises:
        InputError: no traces, ``columns`` below 1, or what `decision_trace` refuses.
    """
    if not traces or columns < 1:
        raise InputError(
            f"decision panels: {len(traces)} traces in {columns} columns; valid: at least 1 of both"
        )
    probabilities = {name: _checked(trace) for name, trace in traces.items()}
    columns = min(columns, len(traces))
    rows = -(-len(traces) // columns)
    depth = max(len(trace[0].inclusion) for trace in traces.values())
    figure = Figure(
        figsize=(1.2 + 2.0 * columns, 0.9 + rows * max(1.3, 0.45 + 0.06 * depth)),
        layout="constrained",
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(traces) :]:
        axes.set_visible(False)
    for index, (axes, (name, trace)) in enumerate(zip(grid.flat, traces.items(), strict=False)):
        mesh = _draw_trace(axes, trace, *probabilities[name], size=2.8)
        axes.set_title(name, loc="left", fontsize=9, color=INK)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if index + columns >= len(traces):
            axes.set_xlabel("training step")
    for axes in grid[:, 0]:
        axes.set_ylabel("block")
    bar = figure.colorbar(mesh, ax=grid, shrink=min(1.0, 1.6 / rows), aspect=20, pad=0.02)
    bar.outline.set_linewidth(0.5)
    bar.set_ticks([0, 0.5, 1])
    bar.set_label("probability to stay")
    _add_legend(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    return save_figure(figure, path)


def _draw_cut(axes: Axes, edges: np.ndarray, kept_RL: np.ndarray, width: float) -> None:
    """The line between what would stay and what would go."""
    above, below = kept_RL[:, :-1], kept_RL[:, 1:]
    changes = np.diff(np.pad((above != below).T.astype(int), ((0, 0), (1, 1))), axis=1)
    (unit, begin), (_, end) = np.nonzero(changes == 1), np.nonzero(changes == -1)
    steps, units = [np.stack([edges[begin], edges[end]])], [np.stack([unit, unit]) + 0.5]
    record, unit = np.nonzero(kept_RL[1:] != kept_RL[:-1])
    steps.append(np.stack([edges[record + 1]] * 2))
    units.append(np.stack([unit - 0.5, unit + 0.5]))
    # One line with gaps: a thousand lines would make a vector file large.
    xs, ys = (np.concatenate(values, axis=1) for values in (steps, units))
    gaps = np.full((1, xs.shape[1]), np.nan)
    axes.plot(
        np.concatenate([xs, gaps]).T.ravel(),
        np.concatenate([ys, gaps]).T.ravel(),
        color=INK,
        linewidth=width,
        solid_capstyle="projecting",
        zorder=2.5,
    )


def _add_legend(figure: Figure) -> None:
    figure.legend(
        handles=[
            Line2D([], [], color=INK, linewidth=0.9, label="edge of what would stay"),
            *(Line2D([], [], label=label, **_mark(kept, 5)) for label, kept in _MARKS.items()),
        ],
        loc="outside lower center",
        ncols=3,
    )


def _draw_trace(
    axes: Axes,
    trace: Sequence[DecisionRecord],
    inclusion_RL: np.ndarray,
    kept_RL: np.ndarray,
    size: float,
) -> QuadMesh:
    """One trace: probabilities, the line around what would stay, and marks of what does.

    Args:
        axes: empty ones, whose limits are set.
        trace: the records.
        inclusion_RL: their probabilities.
        kept_RL: what would stay.
        size: of the marks, in points.
    """
    edges = np.array([0, *(record.step for record in trace)], dtype=float)
    depth, span = inclusion_RL.shape[1], edges[-1]
    mesh = axes.pcolormesh(
        edges,
        np.arange(depth + 1) - 0.5,
        inclusion_RL.T,
        cmap=_MAP,
        vmin=0,
        vmax=1,
        rasterized=True,
        linewidth=0,
    )
    _draw_cut(axes, edges, kept_RL, width=0.9 if size > 3 else 0.6)
    # In points from the end, so that marks stand beside narrow panels as well.
    figure = axes.get_figure(root=True)
    assert figure is not None
    beside = axes.get_yaxis_transform() + ScaledTranslation(
        1.2 * size / 72, 0, figure.dpi_scale_trans
    )
    final = set(trace[-1].kept)
    for units, kept in ((final, True), (set(range(depth)) - final, False)):
        axes.plot(
            [1] * len(units), sorted(units), transform=beside, clip_on=False, **_mark(kept, size)
        )
    axes.set_xlim(0, span)
    axes.set_ylim(depth - 0.5, -0.5)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return mesh


_MARKS = {"kept": True, "removed": False}


def _mark(kept: bool, size: float) -> dict[str, Any]:
    """How a unit that is kept or removed in the end is marked."""
    return {
        "linestyle": "",
        "marker": "s",
        "color": COLOURS[1] if kept else "white",
        "markersize": size,
        "markeredgecolor": COLOURS[1],
        "markeredgewidth": 0.7 if size > 3 else 0.5,
    }


def _checked(trace: Sequence[DecisionRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Validate; probabilities and what would stay, both of shape (R, L)."""
    if not trace:
        raise InputError("decision figure: there is no record to draw")
    steps = [record.step for record in trace]
    if any(later <= earlier for earlier, later in pairwise([0, *steps])):
        raise InputError("decision figure: the steps of the records must be strictly increasing")
    depth = len(trace[0].inclusion)
    kept_RL = np.zeros((len(trace), depth), dtype=bool)
    for number, record in enumerate(trace):
        values = np.asarray(record.inclusion, dtype=float)
        if values.shape != (depth,) or not ((values >= 0) & (values <= 1)).all():
            raise InputError(
                f"decision figure: step {record.step} needs {depth} probabilities in 0..1, got "
                f"{record.inclusion}"
            )
        if not set(record.kept) <= set(range(depth)):
            raise InputError(
                f"decision figure: step {record.step} keeps {record.kept}, which has units beyond "
                f"0..{depth - 1}"
            )
        kept_RL[number, list(record.kept)] = True
    return np.array([record.inclusion for record in trace], dtype=float), kept_RL
