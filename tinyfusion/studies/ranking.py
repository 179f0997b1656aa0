"""Methods compared over many cells: tables, mean ranks, and paired differences with their errors.

A cell is whatever methods are compared within, such as one teacher under one budget; figures are
lower-is-better ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tinyfusion.figures.table import Column, Table

LEARNED = "learned"

FIGURES = ("teacher_distance", "fid", "held_out_loss")
"""What is compared, all of it better if lower."""

Scores = dict[tuple[str, str, int], dict[str, float]]
"""Figures of recovered models by cell, method and seed."""


COLUMNS = {
    "fid": Column("FID", ".3f", "lower"),
    "held_out_loss": Column("Held-out loss", ".4f", "lower"),
    "teacher_distance": Column("Distance to teacher", ".5f", "lower"),
}


def _values(scores: Scores, cell: str, method: str, figure: str) -> list[float]:
    return [
        found[figure] for (c, m, _), found in sorted(scores.items()) if (c, m) == (cell, method)
    ]


def table(scores: Scores, cells: Sequence[str], methods: Sequence[str], figure: str) -> Table:
    """Mean and standard deviation over seeds, a row per method and a column per cell."""
    form = COLUMNS[figure]
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method}
        for cell in cells:
            values = _values(scores, cell, method, figure)
            if values:
                row[cell] = (mean(values), stdev(values)) if len(values) > 1 else values[0]
        rows.append(row)
    columns = {cell: Column(cell, form.format, form.better) for cell in cells}
    return Table(rows, {"method": Column("method"), **columns}, figure)


def mean_ranks(
    scores: Scores, cells: Sequence[str], methods: Sequence[str], figure: str
) -> dict[str, float]:
    """Rank of each method's mean within a cell, averaged over the cells; equal means share ranks.

    Cells that lack a method are left out.
    """
    ranks: dict[str, list[float]] = {method: [] for method in methods}
    for cell in cells:
        means = {}
        for method in methods:
            values = _values(scores, cell, method, figure)
            if values:
                means[method] = mean(values)
        if len(means) < len(methods):
            continue
        for method, value in means.items():
            below = sum(other < value for other in means.values())
            equal = sum(other == value for other in means.values())
            ranks[method].append(below + (equal + 1) / 2)
    return {method: mean(found) for method, found in ranks.items() if found}


def comparisons(
    scores: Scores, methods: Sequence[str], by_cell: bool = False
) -> list[dict[str, Any]]:
    """How much lower the learned choice's figures are, paired by cell and seed.

    Cells have figures of different size: compared are logarithms of ratios. Of every figure the
    result is their mean, in percent (negative: the learned choice is lower, which is better), and
    its standard error over the pairs.

    Args:
        scores: figures of all runs.
        methods: what to compare with.
        by_cell: take the mean of a cell's seeds for one pair: seeds often make the same choices, so
            that they are not independent.
    """
    rows = []
    for method in methods:
        if method == LEARNED:
            continue
        row: dict[str, Any] = {"method": method}
        for figure in FIGURES:
            cells = log_ratios(scores, method, figure)
            ratios = [-ratio for found in cells.values() for ratio in found]
            if by_cell:
                ratios = [-mean(found) for found in cells.values()]
            if len(ratios) > 1:
                error = stdev(ratios) / math.sqrt(len(ratios))
                row |= {figure: (100 * mean(ratios), 100 * error), "pairs": len(ratios)}
        rows.append(row)
    return rows


def log_ratios(scores: Scores, method: str, figure: str) -> dict[str, list[float]]:
    """Logarithm of a method's figure over that of the learned choice: by cell, of every seed."""
    found: dict[str, list[float]] = {}
    for (cell, own, seed), values in sorted(scores.items()):
        if own == LEARNED and (cell, method, seed) in scores:
            ratio = math.log(scores[cell, method, seed][figure] / values[figure])
            found.setdefault(cell, []).append(ratio)
    return found


def picture(
    scores: Scores, cells: Sequence[str], methods: Sequence[str], path: Path | str
) -> Path | None:
    """Draw how many times larger every method's figures are than those of the learned choice.

    Bars are a standard deviation over seeds to both sides.

    Returns:
        ``path``; ``None`` if there is nothing to compare.
    """
    panels: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for figure in ("teacher_distance", "fid"):
        rows = panels[COLUMNS[figure].header] = {}
        for method in methods:
            by_cell = log_ratios(scores, method, figure) if method != LEARNED else {}
            rows[method] = {
                cell: (mean(by_cell[cell]), stdev(by_cell[cell]) if len(by_cell[cell]) > 1 else 0.0)
                for cell in cells
                if cell in by_cell
            }
    if not any(row for rows in panels.values() for row in rows.values()):
        return None
    from tinyfusion.figures.ratios import ratio_panels  # imports matplotlib

    return ratio_panels(panels, path, LEARNED)


def rank_table(ranks: Mapping[str, Mapping[str, float]], methods: Sequence[str]) -> Table:
    """Mean ranks, a row per method."""
    rows = [
        {"method": method} | {name: found.get(method) for name, found in ranks.items()}
        for method in methods
    ]
    columns = {name: COLUMNS[name]._replace(format=".2f") for name in FIGURES}
    return Table(rows, {"method": Column("method"), **columns}, "ranks")


def comparison_table(rows: Iterable[dict[str, Any]], name: str) -> Table:
    """What `comparisons` gives as a table of some name."""
    columns = {
        name: Column(f"{COLUMNS[name].header}, % (mean ± standard error)", ".1f")
        for name in FIGURES
    }
    heads = {"method": Column("method"), "pairs": Column("pairs"), **columns}
    return Table(list(rows), heads, name)
