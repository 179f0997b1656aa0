"""Curves over training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import COLOURS, INK, new_figure, save_figure, styled

DASHES = ("-", "--", ":", "-.")
MAX_PLAIN_POINTS = 60
"""Curves of more points are drawn faint, with their running mean over them."""


@styled
def loss_curves(
    metrics: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path | str,
    title: str | None = None,
    y_label: str = "loss",
    log_scale: bool = False,
) -> Path:
    """Draw one curve per metric.

    Args:
        metrics: steps and values by name; values that are not finite leave a gap.
        path: PNG file to write.
        title: line above the figure.
        y_label: what the values are, with their unit.
        log_scale: logarithmic values; values <= 0 leave a gap.

    Returns:
        ``path``.

    Raises:
        InputError: nothing to draw, or steps and values of different lengths.
    """
    if not metrics:
        raise InputError("loss curves: there is no metric to draw")
    figure, axes = new_figure(5.2, 3.0)
    for index, (name, (steps, values)) in enumerate(metrics.items()):
        if len(steps) != len(values) or not len(steps):
            raise InputError(f"loss curves: {name} has {len(steps)} steps and {len(values)} values")
        shown = np.asarray(values, dtype=float)
        shown = np.where(np.isfinite(shown) & ((shown > 0) | (not log_scale)), shown, np.nan)
        look = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        }
        if len(shown) > MAX_PLAIN_POINTS:
            axes.plot(steps, shown, linewidth=0.6, alpha=0.25, **look)
            shown = _running_mean(shown, len(shown) // 30)
        marker = {"marker": "o", "markersize": 3} if len(shown) <= 12 else {}
        axes.plot(steps, shown, linewidth=1.4, label=name, **look, **marker)
    if log_scale:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        # Round numbers of a logarithmic axis may all lie outside a narrow range.
        narrow = high < 8 * low
        axes.yaxis.set_major_locator(
            MaxNLocator(nbins=5) if narrow else LogLocator(subs=(1.0, 2.0, 5.0))
        )
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("training step")
    axes.set_ylabel(y_label)
    axes.grid(axis="y", which="both", linewidth=0.3, alpha=0.5)
    axes.margins(x=0.02)
    axes.legend(loc="best")
    if title:
        axes.set_title(title, loc="left", color=INK)
    return save_figure(figure, path)


def _running_mean(values: NDArray[np.float64], half_width: int) -> NDArray[np.float64]:
    """Mean over up to ``half_width`` neighbours on both sides, leaving out gaps."""
    window = np.ones(2 * half_width + 1)
    present = np.isfinite(values)
    total = np.convolve(np.where(present, values, 0.0), window)[half_width:-half_width]
    count = np.convolve(present.astype(float), window)[half_width:-half_width]
    return np.where(present, total / np.maximum(count, 1.0), np.nan)
