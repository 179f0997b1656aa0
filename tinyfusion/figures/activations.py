"""Massive activations of a teacher and its student (TinyFusion, Figure 8), and where they begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import FAINT, GREY, INK, save_figure, styled
from tinyfusion.figures.looks import looks

BINS_PER_DECADE, INNER_BINS = 20, 8
"""Drawn bins in a decade, and from 0 to where decades begin; those of the data are finer.

With this many, bins are about as wide on both sides of the place where decades begin.
"""

_SCALE = {"linscale": 0.9 / np.log(10)}
"""Without it the value axis would be denser on one side of that place than on the other."""

_MARKERS = "os"


@styled
def massive_activations(
    models: Mapping[str, Mapping[str, Any]],
    edges: Sequence[float],
    path: Path | str,
    title: str | None = None,
    printed: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """Draw the states of one or two models as a whole, and block by block.

    Above, for each model, the number of entries by value, over all blocks, with the extremes and
    the standard deviation as in the paper. Below, the extremes and the standard deviation after
    each block, and the share that masked distillation drops there.

    Args:
        models: by name, as in ``activations.json``: ``whole`` and ``blocks``, both with ``min``,
            ``max``, ``std``, ``histogram`` and ``dropped``; a block also with ``place``, its index
            in the unpruned model.
        edges: edges of the histograms' bins, ascending, one more than bins.
        path: PNG file to write; a PDF and an SVG are written beside it.
        title: line above the figure.
        printed: ``max``, ``min`` and ``std`` of a publication by name of a model, written below
            the measured ones, such as `printed_activations` gives.

    Returns:
        ``path``.

    Raises:
        InputError: no model, one without blocks or without finite states, or histograms that do
            not fit the edges.
    """
    _check(models, edges)
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.15))
    colours = {name: look.colour for name, look in looks(models).items()}
    threshold, largest = _threshold(models), 1
    above: list[Axes] = []
    for index, (name, model) in enumerate(models.items()):
        place = grid[0, :] if len(models) == 1 else grid[0, index]
        shared = above[0] if above else None
        above.append(figure.add_subplot(place, sharex=shared, sharey=shared))
        counts, drawn = coarser(model["whole"]["histogram"], edges, threshold)
        _draw_histogram(above[-1], name, model["whole"], counts, drawn, colours[name])
        _write_ends(above[-1], model["whole"], (printed or {}).get(name))
        largest = max(largest, counts.max())
    _limit(above[0], models, threshold, largest)
    above[0].set_ylabel("entries")
    below = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    _draw_extremes(below[0], models, threshold, colours)
    _draw_dropped(below[1], models, colours)
    label = "block, numbered as before pruning" if _is_pruned(models) else "block"
    for axes in below:
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    return save_figure(figure, path)


def _draw_histogram(
    axes: Axes,
    name: str,
    overall: Mapping[str, Any],
    counts: np.ndarray,
    edges: np.ndarray,
    colour: str,
) -> None:
    axes.stairs(counts, edges, fill=True, color=colour, alpha=0.25, linewidth=0)
    axes.stairs(counts, edges, color=colour, linewidth=1.0)
    axes.set_title(f"{name}, all {overall['blocks']} blocks", loc="left", color=colour)
    axes.set_xlabel("hidden state")


def _write_ends(
    axes: Axes, overall: Mapping[str, Any], printed: Mapping[str, float] | None
) -> None:
    lines = [("", overall, INK)] + ([("paper:   ", printed, GREY)] if printed else [])
    for number, (source, ends, colour) in enumerate(lines):
        axes.annotate(
            f"{source}Max: {ends['max']:.2f}    Min: {ends['min']:.2f}    Std: {ends['std']:.2f}",
            (0.5, 0.99 - 0.09 * number),
            xycoords="axes fraction",
            ha="center",
            va="top",
            fontsize=8 - 0.5 * number,
            color=colour,
        )


def _draw_extremes(
    axes: Axes,
    models: Mapping[str, Mapping[str, Any]],
    threshold: float,
    colours: Mapping[str, str],
) -> None:
    """Least and largest state after each block, and the standard deviation."""
    ends: dict[str, list[float]] = {}
    for index, (name, model) in enumerate(models.items()):
        places = [block["place"] for block in model["blocks"]]
        for key in ("max", "std", "min"):
            values = [np.nan if b[key] is None else b[key] for b in model["blocks"]]
            axes.plot(
                places,
                values,
                color=colours[name],
                linestyle="--" if key == "std" else "-",
                marker=None if key == "std" else _MARKERS[index % len(_MARKERS)],
                markersize=3,
                linewidth=1.0,
            )
            if index == 0:
                ends[key] = values
    axes.axhline(0, color=FAINT, linewidth=0.7, zorder=0)
    axes.set_yscale("symlog", linthresh=threshold, **_SCALE)
    low, high = _range(models, threshold)
    axes.set_ylim(1.3 * low, 1.3 * high)
    _set_ticks(axes.yaxis, low, high, threshold)
    _label_ends(axes, ends)
    axes.set_title("extremes after each block", loc="left", color=INK)
    axes.set_ylabel("hidden state")


def _label_ends(axes: Axes, curves: Mapping[str, Sequence[float]]) -> None:
    """Name curves at the right edge, as far apart as text needs; limits must be set.

    Colours need no names: they are those of the models above.
    """
    ends = {}
    for text, values in curves.items():
        finite = [value for value in values if np.isfinite(value)]
        if finite:
            pixels = axes.transData.transform((0, finite[-1]))
            ends[text] = float(axes.transAxes.inverted().transform(pixels)[1])
    above = np.inf
    for text, height in sorted(ends.items(), key=lambda item: -item[1]):
        above = min(height, above - 0.055)
        axes.annotate(
            text, (1.01, above), xycoords="axes fraction", va="center", fontsize=8, color=INK
        )


def _draw_dropped(
    axes: Axes, models: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]
) -> None:
    """Share of the entries beyond each threshold, one curve for each model and threshold."""
    names = list(next(iter(models.values()))["whole"]["dropped"])
    ends: dict[str, list[float]] = {}
    smallest = 1.0
    for index, (name, model) in enumerate(models.items()):
        places = [block["place"] for block in model["blocks"]]
        for key in names:
            shares = [block["dropped"][key] or np.nan for block in model["blocks"]]
            smallest = min([smallest, *(share for share in shares if share > 0)])
            axes.plot(
                places,
                shares,
                color=colours[name],
                marker=_MARKERS[index],
                markersize=3,
                linewidth=1.0,
            )
            if index == 0:
                ends[f"{key}\N{GREEK SMALL LETTER SIGMA}"] = shares
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.set_ylim(10 ** np.floor(np.log10(smallest)), 1.3)
    _label_ends(axes, ends)
    axes.set_title("entries that masked KD drops", loc="left", color=INK)
    axes.grid(axis="y", linewidth=0.3, alpha=0.5)


def coarser(
    histogram: Sequence[int], edges: Sequence[float], threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Join bins so that they look equally wide on the drawn axis.

    Args:
        histogram: entries between neighbouring edges.
        edges: ascending, symmetric around 0.
        threshold: where the axis turns from linear to logarithmic.

    Returns:
        Counts and their edges, which are some of the given ones: those next to multiples of a
        fraction of ``threshold``, and beyond it next to equal fractions of decades.
    """
    given = np.asarray(edges)
    inner = np.arange(INNER_BINS) / INNER_BINS * threshold
    decades = np.log10(given[-1] / threshold)
    outer = threshold * 10 ** (np.arange(round(decades * BINS_PER_DECADE) + 1) / BINS_PER_DECADE)
    wanted = np.concatenate([inner, outer])
    wanted = np.concatenate([-wanted[:0:-1], wanted])
    chosen = np.unique(np.abs(given[None] - wanted[:, None]).argmin(1))
    return np.add.reduceat(np.asarray(histogram), chosen[:-1]), given[chosen]


def _threshold(models: Mapping[str, Mapping[str, Any]]) -> float:
    """Where the value axis turns from linear to logarithmic.

    The power of ten next to the usual size of the states, so that their distribution keeps its
    shape.
    """
    size = max(model["whole"]["std"] for model in models.values())
    return float(10 ** np.round(np.log10(size))) if size > 0 else 1.0


def _range(models: Mapping[str, Mapping[str, Any]], threshold: float) -> tuple[float, float]:
    """The extremes of all models, at least from the threshold to its negative."""
    low = min(model["whole"]["min"] for model in models.values())
    high = max(model["whole"]["max"] for model in models.values())
    return min(low, -threshold), max(high, threshold)


def _limit(
    axes: Axes, models: Mapping[str, Mapping[str, Any]], threshold: float, largest: float
) -> None:
    """Scales of the histograms, just wider than the extremes and with room for a line above."""
    low, high = _range(models, threshold)
    axes.set_xscale("symlog", linthresh=threshold, **_SCALE)
    axes.set_xlim(1.5 * low, 1.5 * high)
    _set_ticks(axes.xaxis, 1.5 * low, 1.5 * high, threshold)
    axes.set_yscale("log")
    axes.set_ylim(0.6, 20 * largest)
    axes.yaxis.set_minor_locator(NullLocator())


def _set_ticks(axis: Axis, low: float, high: float, threshold: float) -> None:
    """Ticks at 0 and at decades from the threshold on, between them where there is room."""
    decades = np.log10(max(-low, high) / threshold)
    steps = (1, 3) if decades < 1.5 else (1,)
    sizes = [step * threshold * 10.0**n for n in range(int(decades) + 1) for step in steps]
    values = [0.0, *sizes, *(-size for size in sizes)]
    axis.set_major_locator(FixedLocator([value for value in values if low <= value <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def printed_activations(figure: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Numbers of the paper's figure 8 by role, for ``printed`` of `massive_activations`.

    Args:
        figure: as in ``paper_tables.yaml``, with the role in brackets behind each model's name.
    """
    return {
        row["model"].rpartition("(")[2].rstrip(")"): {key: row[key] for key in _ENDS}
        for row in figure["rows"]
    }


_ENDS = ("max", "min", "std")


def _is_pruned(models: Mapping[str, Mapping[str, Any]]) -> bool:
    blocks = [model["blocks"] for model in models.values()]
    return any(block["place"] != index for found in blocks for index, block in enumerate(found))


def _check(models: Mapping[str, Mapping[str, Any]], edges: Sequence[float]) -> None:
    if not models:
        raise InputError("massive activations: there is no model to draw")
    for name, model in models.items():
        if not model["blocks"]:
            raise InputError(f"massive activations: {name} has no block")
        for found in (model["whole"], *model["blocks"]):
            if len(found["histogram"]) != len(edges) - 1:
                raise InputError(
                    f"massive activations: {name} has a histogram of {len(found['histogram'])} "
                    f"bins, but there are {len(edges)} edges; valid: one edge more than bins"
                )
        if model["whole"]["min"] is None:
            raise InputError(f"massive activations: no hidden state of {name} is a finite number")
