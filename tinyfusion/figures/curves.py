"""Figures of quality over training steps, with their spread over seeds: the paper's Figure 14."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import COLOURS, new_figure, save_figure, styled

Curve = Sequence[tuple[float, float]]
"""Pairs of step and value, steps ascending."""


@styled
def curves(
    named: Mapping[str, Sequence[Curve]],
    path: Path | str,
    label: str,
    logarithmic: bool = True,
    title: str | None = None,
) -> Path:
    """Draw one line for each name: the mean of its curves, in a band of a standard deviation.

    Args:
        named: by name the curves of its seeds; a step that some of them lack is left out.
        path: PNG file to write.
        label: of the vertical axis, with the direction that is better.
        logarithmic: scale of the vertical axis.
        title: line above the figure.

    Returns:
        ``path``.

    Raises:
        InputError: there is no point to draw.
    """
    figure, axes = new_figure(5.2, 3.2)
    drawn = False
    for number, (name, own) in enumerate(named.items()):
        by_curve = [dict(curve) for curve in own if curve]
        if not by_curve:
            continue
        steps = sorted(set.intersection(*(set(curve) for curve in by_curve)))
        means = [mean(curve[step] for curve in by_curve) for step in steps]
        colour = COLOURS[number % len(COLOURS)]
        seeds = f" ({len(by_curve)} seeds)" if len(by_curve) > 1 else ""
        axes.plot(steps, means, color=colour, marker="o", markersize=3, label=f"{name}{seeds}")
        if len(by_curve) > 1:
            spreads = [stdev(curve[step] for curve in by_curve) for step in steps]
            low = [max(m - s, m / 10) for m, s in zip(means, spreads, strict=True)]
            high = [m + s for m, s in zip(means, spreads, strict=True)]
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        drawn = drawn or bool(steps)
    if not drawn:
        raise InputError("curves: there is no point to draw")
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.tick_params("y", which="minor", labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.legend()
    if title:
        axes.set_title(title, loc="left")
    return save_figure(figure, path)
