"""How a decision came about: the paper's Figures 6 and 9-11.

Shape suffixes: R records, L blocks, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import COLOURS, FAINT, INK, new_figure, save_figure, styled

LEAST_OPACITY = 0.1
"""Opacity at confidence 0: with thousands of patterns the first decisions would be invisible."""


class DecisionRecord(NamedTuple):
    """What would be decided at one moment of mask learning.

    Attributes:
        step: optimiser step.
        kept: blocks that the likeliest pattern of each group keeps.
        confidence: probability of that pattern, one per group, 0..1.
    """

    step: int
    kept: tuple[int, ...]
    confidence: tuple[float, ...]


@styled
def decision_trace(
    trace: Sequence[DecisionRecord],
    groups: Sequence[Sequence[int]],
    path: Path | str,
    title: str | None = None,
    kept: Sequence[int] | None = None,
) -> Path:
    """Draw the decided blocks over the steps, confidence as opacity (from a visible least one).

    Args:
        trace: records with ascending steps, at least one.
        groups: block indices of every group; together 0..L-1.
        path: PNG file to write.
        title: line above the figure.
        kept: the final decision, marked at the right edge; default: that of the last record.

    Returns:
        ``path``.

    Raises:
        InputError: no records, steps out of order, confidences that are not one per group in
            0..1, or groups or blocks that do not fit together.
    """
    group_of = _check(trace, groups)
    depth = len(group_of)
    final = set(trace[-1].kept if kept is None else kept)
    if not final <= set(range(depth)):
        raise InputError(f"decision figure: kept={sorted(final)} has blocks beyond 0..{depth - 1}")
    steps = [record.step for record in trace]
    # Each record is drawn from its own step to the next one's.
    spacing = steps[-1] - steps[-2] if len(steps) > 1 else 1
    ends = [*steps[1:], steps[-1] + spacing]
    span = ends[-1] - steps[0]

    figure, axes = new_figure(6.4, max(2.0, 0.9 + 0.135 * depth))
    _draw_bars(axes, trace, ends, group_of)
    edge = ends[-1] + 0.04 * span
    _draw_final(axes, edge, final, depth)
    for group in groups[1:]:
        axes.axhline(min(group) - 0.5, color=FAINT, linewidth=0.5, zorder=0)

    axes.set_xlim(steps[0], ends[-1] + 0.07 * span)
    axes.set_ylim(depth - 0.5, -0.5)
    axes.set_yticks(np.arange(0, depth, 1 if depth <= 14 else 2 if depth <= 40 else 4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.spines["bottom"].set_bounds(steps[0], ends[-1])
    axes.set_xlabel("training step")
    axes.set_ylabel("block")
    if title:
        axes.set_title(title, loc="left", color=INK, pad=10)
    fade = LinearSegmentedColormap.from_list("confidence", [_shade(0.0), _shade(1.0)])
    bar = figure.colorbar(
        ScalarMappable(cmap=fade), ax=axes, shrink=0.45, aspect=16, pad=0.02, anchor=(0, 1)
    )
    bar.outline.set_linewidth(0.5)
    bar.set_ticks([0, 0.5, 1])
    bar.set_label("confidence")
    return save_figure(figure, path)


def _shade(confidence: float) -> tuple[float, ...]:
    """The colour of kept blocks, laid over white with an opacity that grows with confidence."""
    opacity = LEAST_OPACITY + (1 - LEAST_OPACITY) * confidence
    return tuple(1 - opacity * (1 - part) for part in to_rgb(COLOURS[0]))


def _draw_bars(
    axes: Axes, trace: Sequence[DecisionRecord], ends: Sequence[float], group_of: Sequence[int]
) -> None:
    bars, shades = [], []
    for record, end in zip(trace, ends, strict=True):
        for block in record.kept:
            bars.append(Rectangle((record.step, block - 0.36), end - record.step, 0.72))
            shades.append(_shade(record.confidence[group_of[block]]))
    # Smoothed edges would leave a light seam between neighbours.
    axes.add_collection(PatchCollection(bars, facecolors=shades, linewidths=0, antialiased=False))


def _draw_final(axes: Axes, edge: float, final: set[int], depth: int) -> None:
    for blocks, filling in ((final, COLOURS[1]), (set(range(depth)) - final, "white")):
        axes.plot(
            [edge] * len(blocks),
            sorted(blocks),
            "s",
            color=filling,
            markersize=5,
            markeredgecolor=COLOURS[1],
            markeredgewidth=0.7,
        )
    axes.annotate(
        "kept", (edge, -0.5), (0, 3), textcoords="offset points", ha="center", fontsize=8, color=INK
    )


def _check(trace: Sequence[DecisionRecord], groups: Sequence[Sequence[int]]) -> list[int]:
    """Validate and return the group index of every block."""
    blocks = [block for group in groups for block in group]
    if not blocks or blocks != list(range(len(blocks))):
        raise InputError(
            f"decision figure: groups must cover blocks 0, 1, ... in order, got {list(groups)}"
        )
    if not trace:
        raise InputError("decision figure: there is no record to draw")
    steps = [record.step for record in trace]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise InputError("decision figure: the steps of the records must be strictly increasing")
    for record in trace:
        confidences = np.asarray(record.confidence, dtype=float)
        if (
            confidences.shape != (len(groups),)
            or not ((0 <= confidences) & (confidences <= 1)).all()
        ):
            raise InputError(
                f"decision figure: step {record.step} needs {len(groups)} confidences in 0..1, "
                f"got {record.confidence}"
            )
        if not set(record.kept) <= set(blocks):
            raise InputError(
                f"decision figure: step {record.step} keeps {record.kept}, which has blocks "
                f"beyond 0..{len(blocks) - 1}"
            )
    return [index for index, group in enumerate(groups) for _ in group]
