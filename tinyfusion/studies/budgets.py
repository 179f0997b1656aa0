"""Report on pruners over budgets and teachers: tables, ranks, differences, and one picture."""

from __future__ import annotations

from pathlib import Path

from tinyfusion.figures.table import Table
from tinyfusion.studies.outcome import Outcome
from tinyfusion.studies.ranking import (
    COLUMNS,
    FIGURES,
    Scores,
    comparison_table,
    comparisons,
    mean_ranks,
    picture,
    rank_table,
    table,
)
from tinyfusion.studies.written import Report


def report(outcome: Outcome, folder: Path) -> Report:
    """What is complete: tables, ranks and differences, with a picture.

    Args:
        outcome: a study whose rows have the labels ``cell`` and ``method``.
        folder: where the picture goes.

    Raises:
        InputError: no run is complete.
    """
    scores = scores_of(outcome)
    cells = list(dict.fromkeys(row.labels["cell"] for row in outcome.study.rows))
    methods = list(dict.fromkeys(row.labels["method"] for row in outcome.study.rows))
    parts: list[str | Table] = []
    for figure in FIGURES:
        parts += [f"## {COLUMNS[figure].head}\n", table(scores, cells, methods, figure)]
    ranks = {figure: mean_ranks(scores, cells, methods, figure) for figure in FIGURES}
    parts += ["## Mean rank over all cells ↓\n", rank_table(ranks, methods)]
    parts += [
        "## The learned choice against each method\n",
        "Differences in percent, negative: the learned choice is lower, which is better.\n",
        comparison_table(comparisons(scores, methods), "differences"),
        "Cells as pairs, each the mean of its seeds:\n",
        comparison_table(comparisons(scores, methods, True), "differences_by_cell"),
        "## Blocks that stay\n",
        *choices(outcome),
    ]
    drawn = picture(scores, cells, methods, folder / f"{outcome.study.name}.png")
    return Report(parts, [] if drawn is None else [drawn.name])


def scores_of(outcome: Outcome) -> Scores:
    """Figures of recovered models by cell, method and seed."""
    scores: Scores = {}
    for cell, record in outcome.complete():
        found = record.figures(cell.row.model)
        labels = cell.row.labels
        scores[labels["cell"], labels["method"], cell.seed] = {k: found[k] for k in FIGURES}
    return scores


def choices(outcome: Outcome) -> list[str]:
    """One line for every row and set of blocks."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for cell, record in outcome.complete():
        if record.decision.get("kept"):
            kept = " ".join(map(str, record.decision["kept"]))
            if record.decision.get("removed"):
                kept += f", without {' '.join(record.decision['removed'])}"
            seeds.setdefault((cell.row.name, kept), []).append(cell.seed)
    return [
        f"- {name} (seed{'s' * (len(found) > 1)} {', '.join(map(str, sorted(found)))}): {kept}"
        for (name, kept), found in seeds.items()
    ]
