"""Quality over training steps, with its spread over seeds: the paper's Figure 14."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import (
    GREY,
    INK,
    low_end,
    new_figure,
    round_ticks,
    save_figure,
    styled,
)
from tinyfusion.figures.looks import looks

Curve = Sequence[tuple[float, float]]
"""Pairs of step and value."""


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
        named: by name the curves of its seeds, one or more; a step that some of them lack is left
            out, and a name without a common step with it.
        path: PNG file to write; a PDF and an SVG are written beside it.
        label: of the vertical axis, with the direction that is better.
        logarithmic: scale of the vertical axis; values must be positive then.
        title: line above the figure.

    Returns:
        ``path``.

    Raises:
        InputError: there is no point to draw, or a mean that is not positive on a logarithmic axis.
    """
    means, spreads, seeds = {}, {}, {}
    for name, own in named.items():
        by_seed = [dict(curve) for curve in own if len(curve)]
        steps = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
        if steps:
            values = {step: [curve[step] for curve in by_seed] for step in steps}
            means[name] = {step: mean(found) for step, found in values.items()}
            seeds[name] = len(by_seed)
            if len(by_seed) > 1:
                spreads[name] = [stdev(found) for found in values.values()]
    if not means:
        raise InputError("curves: there is no point to draw")
    for name, points in means.items():
        least = min(points.values())
        if logarithmic and least <= 0:
            raise InputError(
                f"curves: {name} has the value {least}; valid on a logarithmic axis: above 0"
            )
    figure, axes = new_figure(5.2, 3.4)
    for name, look in looks(means).items():
        steps, middle = list(means[name]), list(means[name].values())
        axes.plot(
            steps, middle, color=look.colour, marker=look.marker, markersize=4, linewidth=1.2,
            label=name if len(set(seeds.values())) == 1 else f"{name} ({_seeds(seeds[name])})",
        )  # fmt: skip
        if name in spreads:
            pairs = list(zip(middle, spreads[name], strict=True))
            low = [low_end(m, s) if logarithmic else m - s for m, s in pairs]
            high = [m + s for m, s in pairs]
            axes.fill_between(steps, low, high, color=look.colour, alpha=0.18, linewidth=0)
    if logarithmic:
        axes.set_yscale("log")
        round_ticks(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", linewidth=0.3, alpha=0.5)
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    handles, _ = axes.get_legend_handles_labels()
    if spreads:
        what = f"mean ± standard deviation of {_seeds(*set(seeds.values()))}"
        handles.append(Patch(color=GREY, alpha=0.25, linewidth=0, label=what))
    axes.legend(handles=handles)
    if title:
        axes.set_title(title, loc="left", color=INK)
    return save_figure(figure, path)


def _seeds(*counts: int) -> str:
    if len(counts) > 1:
        return "the seeds"
    return f"{counts[0]} seed{'s' * (counts[0] != 1)}"
