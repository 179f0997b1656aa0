"""Whether a figure before recovery predicts the recovered model: rank correlation over pruners."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import mean, stdev
from typing import Any

import numpy as np

from tinyfusion.figures.scatter import Point
from tinyfusion.figures.table import Column, Table

LEAST_POINTS = 4
"""Of fewer pruners no rank correlation is given."""

DRAWS = 20_000


@dataclass(frozen=True)
class Student:
    """One recovered model.

    Attributes:
        pruner: what chose its blocks.
        recovery: how it was recovered.
        seed: the seed.
        kept: its blocks; empty where widths were cut.
        before: figures right after the cut, by the names in `BEFORE`.
        after: figures of the recovered model.
    """

    pruner: str
    recovery: str
    seed: int
    kept: tuple[int, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]


BEFORE = ("calibration_loss", "pruned_fid")
"""Figures right after the cut that may predict the recovered model."""

AFTER = ("fid", "held_out_loss")
"""Figures of the recovered model."""

AMONG = ("all", "lower half")
"""All choices, or the half of them in which the figure right after the cut is lowest."""

NAMES = {
    "calibration_loss": "calibration loss",
    "pruned_fid": "FID",
    "fid": "FID",
    "held_out_loss": "held-out loss",
}


def by_pruner(students: Sequence[Student], recovery: str) -> dict[str, list[Student]]:
    """Students of a recovery by the pruner that chose their blocks; cut widths are left out."""
    grouped: dict[str, list[Student]] = {}
    for student in students:
        if student.recovery == recovery and student.kept:
            grouped.setdefault(student.pruner, []).append(student)
    return grouped


def points(students: Sequence[Student], recovery: str) -> list[Point]:
    """Calibration loss and FID per pruner of blocks, means over seeds."""
    made = []
    for pruner, members in by_pruner(students, recovery).items():
        fids = [s.after["fid"] for s in members]
        losses = [s.before["calibration_loss"] for s in members]
        made.append(Point(pruner, mean(losses), mean(fids), stdev(fids) if len(fids) > 1 else None))
    return made


def rank_correlation(
    students: Sequence[Student], recovery: str, before: str, after: str, among: str = "all"
) -> dict[str, Any] | None:
    """Spearman's rank correlation of a figure right after the cut and one after recovery.

    Pruners that chose the same blocks for every seed are one point.

    Args:
        students: finished runs.
        recovery: how they were recovered.
        before: one of `BEFORE`.
        after: one of `AFTER`; both are averaged over seeds per pruner.
        among: one of `AMONG`; choices that are plainly bad can make a correlation that does not
            hold among the rest.

    Returns:
        ``rho``, its two-sided ``p`` (see `p_value`), ``choices`` (how many points); ``None`` if
        there are fewer than four, or if all values are equal.
    """
    from scipy.stats import spearmanr

    pairs: list[tuple[float, float]] = []
    choices: list[dict[int, tuple[int, ...]]] = []
    for own in by_pruner(students, recovery).values():
        pair = (
            mean(s.before[before] for s in own),
            mean(s.after[after] for s in own),
        )
        choice = {s.seed: s.kept for s in own}
        if all(map(math.isfinite, pair)) and not any(_same(choice, c) for c in choices):
            pairs.append(pair)
            choices.append(choice)
    kept = sorted(pairs)
    if among == "lower half":
        kept = kept[: (len(kept) + 1) // 2]
    x, y = [first for first, _ in kept], [second for _, second in kept]
    if len(kept) < LEAST_POINTS or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rho = float(spearmanr(x, y).statistic)
    return {"rho": rho, "p": p_value(x, y, rho), "choices": len(kept)}


def _same(one: Mapping[int, Any], other: Mapping[int, Any]) -> bool:
    """Whether two pruners chose the same blocks for every seed that both have finished."""
    common = one.keys() & other.keys()
    return bool(common) and all(one[seed] == other[seed] for seed in common)


def correlations(students: Sequence[Student], recoveries: Sequence[str]) -> list[dict[str, Any]]:
    """All rank correlations that can be given, see `rank_correlation`."""
    return [
        {"recovery": recovery, "before": before, "after": after, "among": among, **found}
        for recovery in recoveries
        for before in BEFORE
        for after in AFTER
        for among in AMONG
        if (found := rank_correlation(students, recovery, before, after, among)) is not None
    ]


def p_value(x: Sequence[float], y: Sequence[float], rho: float) -> float:
    """Share of the orders of ``y`` whose rank correlation with ``x`` is as far from 0 as ``rho``.

    All orders of up to 8 values, 20,000 seeded draws of more; the usual formula holds for many
    points only.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (x, y)]
    if len(x) <= 8:
        orders = np.array(list(permutations(ranks[1])))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(ranks[1], (DRAWS, 1)), axis=1)
    found = orders @ ranks[0] / np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    as_far = int((np.abs(found) >= abs(rho) - 1e-9).sum())
    # The order that was found is one of all of them, but not one of those that were drawn.
    return as_far / len(orders) if len(x) <= 8 else (as_far + 1) / (len(orders) + 1)


def correlation_parts(found: Sequence[Mapping[str, Any]]) -> list[str | Table]:
    """The rank correlations as a table, with what they mean above it."""
    if not found:
        return [f"Not given: fewer than {LEAST_POINTS} different choices are finished.\n"]
    columns = {
        "recovery": Column("recovery"),
        "before": Column("right after the cut"),
        "after": Column("after recovery"),
        "among": Column("among"),
        "rho": Column("Spearman's rho", "+.2f"),
        "p": Column("p", ".1g"),
        "choices": Column("choices"),
    }
    rows = [{**row, **{key: NAMES[row[key]] for key in ("before", "after")}} for row in found]
    meaning = (
        "Rank correlation over pruners of blocks (means over seeds; those that chose the same\n"
        "blocks count once) between a figure right after the cut and one of the recovered model.\n"
        "1: the lower before, the better after; 0: it predicts nothing. Among all choices, and\n"
        "among the half of them that is lowest before.\n"
    )
    return [meaning, Table(rows, columns, "correlations")]
