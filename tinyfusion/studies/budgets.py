"""Report on pruners over budgets and teachers: tables, ranks, differences, and one picture."""

from __future__ import annotations

from pathlib import Path

from tinyfusion.files import write_json, write_text
from tinyfusion.studies.outcome import Outcome, footnotes
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


def report(outcome: Outcome, folder: Path) -> str:
    """Write ``NAME.md``, ``.json`` and the picture of what is complete; returns the text.

    Args:
        outcome: a study whose rows have the labels ``cell`` and ``method``.
        folder: where the files go.

    Raises:
        InputError: no run is complete.
    """
    name = outcome.study.name
    scores = scores_of(outcome)
    cells = list(dict.fromkeys(row.labels["cell"] for row in outcome.study.rows))
    methods = list(dict.fromkeys(row.labels["method"] for row in outcome.study.rows))
    parts = [f"# {outcome.study.title}\n", f"{outcome.study.note}\n"]
    for figure in FIGURES:
        parts += [f"## {COLUMNS[figure].header} ↓\n", table(scores, cells, methods, figure)]
    ranks = {figure: mean_ranks(scores, cells, methods, figure) for figure in FIGURES}
    parts += ["## Mean rank over all cells ↓\n", rank_table(ranks, methods)]
    compared = {by: comparisons(scores, methods, by == "cells") for by in ("pairs", "cells")}
    parts += [
        "## The learned choice against each method\n",
        "Differences in percent, negative: the learned choice is lower, which is better.\n",
        comparison_table(compared["pairs"]),
        "Cells as pairs, each the mean of its seeds:\n",
        comparison_table(compared["cells"]),
    ]
    parts += ["## Blocks that stay\n", *choices(outcome), *footnotes(outcome)]
    text = "\n".join(parts) + "\n"
    write_text(folder / f"{name}.md", text)
    write_json(folder / f"{name}.json", {"ranks": ranks, "comparisons": compared})
    picture(scores, cells, methods, folder / f"{name}.png")
    return text


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
