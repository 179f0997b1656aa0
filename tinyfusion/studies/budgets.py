"""The learned choice against criteria at several budgets and on several teachers."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tinyfusion.budget import KEEP
from tinyfusion.errors import InputError
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.files import write_json, write_text
from tinyfusion.studies.collect import FinishedRun, read_run
from tinyfusion.studies.digits import slug
from tinyfusion.studies.jobs import Job
from tinyfusion.units import BRANCHES

LEARNED = "learned"

METHODS: dict[str, tuple[str, ...]] = {
    LEARNED: ("pruner=learned",),
    "sensitivity": ("pruner=sensitivity",),
    "first": ("pruner=first",),
    "shortgpt": ("pruner=shortgpt",),
    "flux_lite": ("pruner=flux_lite",),
    "random": ("pruner=random",),
    "least loss": ("pruner=sensitivity", "selector=greedy"),
}
"""Ways of choosing, by their overrides; ``least loss`` removes one block at a time, that without
which the loss is least."""

UNSEEDED = ("first",)
"""Methods whose choice is the same for every seed."""

FIGURES = ("fid", "held_out_loss", "teacher_distance")
"""What is compared, all of it better if lower."""


@dataclass(frozen=True)
class Cell:
    """One teacher under one budget.

    Attributes:
        teacher: name of the packaged teacher, such as ``"digits"``.
        budget: the override that gives the budget, such as ``"keep=7"``.
    """

    teacher: str
    budget: str

    @property
    def name(self) -> str:
        """As the tables call it."""
        return f"{self.teacher} {self.budget.removeprefix('keep=')}"


def cell_of(text: str) -> Cell:
    """A cell as given on a command line: ``TEACHER:BUDGET``.

    Raises:
        argparse.ArgumentTypeError: not of this form.
    """
    teacher, _, budget = text.partition(":")
    if not teacher or not budget.startswith(("keep=", "budget.")):
        raise ArgumentTypeError(f"{text!r}: give TEACHER:BUDGET, such as digits:keep=7")
    return Cell(teacher, budget)


REPORTED = (
    *(Cell("digits", f"keep={keep}") for keep in (5, 7, 10, 14, 20)),
    *(Cell("sit_digits", f"keep={keep}") for keep in (7, 10)),
    Cell("mar_digits", "keep=10"),
)
"""Cells that nothing was tuned on; the settings were found on the DiT at 7 and 12 blocks, with the
seeds 10, 11 and 12."""

UNITS: dict[str, tuple[str, ...]] = {
    LEARNED: ("pruner=learned",),
    "learned, branches": ("pruner=learned", "units=branches"),
    "sensitivity": ("pruner=sensitivity",),
    "sensitivity, branches": ("pruner=sensitivity", "units=branches"),
}
"""Blocks and branches."""

EQUAL_MACS = tuple(cell for cell in REPORTED if cell.name in ("digits 7", "digits 14"))
"""Where `UNITS` are compared: blocks by their number, and branches that cost no more."""


@cache
def equal_macs(cell: Cell) -> str:
    """The budget that gives branches the MACs of a cell's blocks; of other budgets, these."""
    measure, _, amount = cell.budget.partition("=")
    if measure != KEEP:
        return cell.budget
    from tinyfusion.checkpoints import load  # imports torch
    from tinyfusion.metrics.speed import macs

    net = load(cell.teacher)
    net.keep_blocks(range(int(amount)))
    return f"budget.macs={macs(net)}"


def plan(
    root: Path,
    seeds: Sequence[int],
    cells: Sequence[Cell] = REPORTED,
    methods: Mapping[str, Sequence[str]] = METHODS,
) -> list[Job]:
    """All jobs, every decision before the run that uses it; seed by seed, so that a part is fair.

    Args:
        root: folder of the study.
        seeds: seeds of decision and recovery alike.
        cells: teachers and budgets.
        methods: overrides by the name of the method.
    """
    jobs: dict[Path, Job] = {}
    for seed in seeds:
        for cell in cells:
            for method, overrides in methods.items():
                seeded = method not in UNSEEDED
                own = seed if seeded else seeds[0]
                common = (f"checkpoint={cell.teacher}",)
                budget = equal_macs(cell) if f"units={BRANCHES}" in overrides else cell.budget
                place = slug(cell.name)
                decided = root / "decisions" / f"{place}__{slug(method)}__seed{own}"
                choice = (*common, *overrides, budget, f"seed={own}")
                jobs.setdefault(decided, Job(decided, "prune", choice, method, "", own))
                folder = root / "runs" / f"{place}__{slug(method)}__seed{seed}"
                run = (*common, "experiment=digits_study", "recovery=kd", f"seed={seed}")
                jobs[folder] = Job(folder, "run", run, method, cell.name, seed, decided, True)
    return list(jobs.values())


Scores = dict[tuple[str, str, int], dict[str, float]]
"""Figures of recovered models by cell, method and seed."""


def report(root: Path, jobs: Sequence[Job], name: str = "budgets") -> str:
    """Write ``budgets.md``, ``.json`` and ``.png`` of what is finished; returns the text.

    Args:
        root: folder of the study.
        jobs: what belongs to it.
        name: of the files, without their end.

    Raises:
        InputError: no run is finished.
    """
    runs = {
        (job.recovery, job.pruner, job.seed): read_run(job.folder)
        for job in jobs
        if job.command == "run" and job.done
    }
    if not runs:
        raise InputError(f"{root} holds no finished run of the study yet")
    scores = {key: figures_of(run) for key, run in runs.items()}
    cells = list(dict.fromkeys(job.recovery for job in jobs if job.command == "run"))
    methods = list(dict.fromkeys(job.pruner for job in jobs))
    parts = []
    for figure in FIGURES:
        parts += [f"## {COLUMNS[figure].header} ↓\n", table(scores, cells, methods, figure)]
    ranks = {figure: mean_ranks(scores, cells, methods, figure) for figure in FIGURES}
    parts += ["## Mean rank over all cells ↓\n", _rank_table(ranks, methods)]
    compared = {name: comparisons(scores, methods, name == "cells") for name in ("pairs", "cells")}
    parts += ["## The learned choice against each method\n", _comparison_table(compared["pairs"])]
    parts += ["Cells as pairs, each the mean of its seeds:\n", _comparison_table(compared["cells"])]
    parts += ["## Blocks that stay\n", *_kept(runs)]
    missing = [job for job in jobs if not job.done]
    if missing:
        parts.append(f"\nNot finished: {len(missing)} of {len(jobs)} jobs.\n")
    text = "\n".join(parts) + "\n"
    write_text(root / f"{name}.md", text)
    write_json(root / f"{name}.json", {"ranks": ranks, "comparisons": compared})
    picture(scores, cells, methods, root / f"{name}.png")
    return text


COLUMNS = {
    "fid": Column("FID", ".3f"),
    "held_out_loss": Column("Held-out loss", ".4f"),
    "teacher_distance": Column("Distance to teacher", ".5f"),
}


def figures_of(run: FinishedRun) -> dict[str, float]:
    """What is compared of a run's recovered model."""
    return {name: run.models["recovered"][name] for name in FIGURES}


def _values(scores: Scores, cell: str, method: str, figure: str) -> list[float]:
    return [
        found[figure] for (c, m, _), found in sorted(scores.items()) if (c, m) == (cell, method)
    ]


def table(scores: Scores, cells: Sequence[str], methods: Sequence[str], figure: str) -> str:
    """Mean and standard deviation over seeds, a row per method and a column per cell."""
    form = COLUMNS[figure].format
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method}
        for cell in cells:
            values = _values(scores, cell, method, figure)
            if values:
                row[cell] = (mean(values), stdev(values)) if len(values) > 1 else values[0]
        rows.append(row)
    return markdown_table(
        rows, {"method": Column("method"), **{cell: Column(cell, form) for cell in cells}}
    )


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


def _rank_table(ranks: Mapping[str, Mapping[str, float]], methods: Sequence[str]) -> str:
    rows = [
        {"method": method} | {name: found.get(method) for name, found in ranks.items()}
        for method in methods
    ]
    columns = {name: Column(COLUMNS[name].header, ".2f") for name in FIGURES}
    return markdown_table(rows, {"method": Column("method"), **columns})


def _comparison_table(rows: Iterable[dict[str, Any]]) -> str:
    columns = {
        name: Column(f"{COLUMNS[name].header}, % (mean ± standard error)", ".1f")
        for name in FIGURES
    }
    return markdown_table(
        list(rows), {"method": Column("method"), "pairs": Column("pairs"), **columns}
    )


def _kept(runs: Mapping[tuple[str, str, int], FinishedRun]) -> list[str]:
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for (cell, method, seed), run in sorted(runs.items()):
        removed = f", without {' '.join(run.removed)}" if run.removed else ""
        kept = " ".join(map(str, run.kept)) + removed
        seeds.setdefault((cell, method, kept), []).append(seed)
    return [
        f"- {cell}, {method} (seed{'s' * (len(found) > 1)} {', '.join(map(str, found))}): {kept}"
        for (cell, method, kept), found in seeds.items()
    ]
