"""Report on a comparison of pruners: what the loss right after the cut says of recovered models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyfusion.figures.scatter import scatter
from tinyfusion.figures.table import Column, Table
from tinyfusion.studies.budgets import choices
from tinyfusion.studies.correlation import Student, correlation_parts, correlations, points
from tinyfusion.studies.outcome import Outcome, spread
from tinyfusion.studies.written import Report

CUT = "pruned"


def report(outcome: Outcome, folder: Path) -> Report:
    """What is complete, with a picture.

    Args:
        outcome: a study whose rows have the labels ``pruner`` and ``recovery``.
        folder: where the picture goes.

    Raises:
        InputError: no run is complete.
    """
    students = students_of(outcome)
    pruners = list(dict.fromkeys(row.labels["pruner"] for row in outcome.study.rows))
    recoveries = list(dict.fromkeys(row.labels["recovery"] for row in outcome.study.rows))
    rows = [overview_row(students, pruner, recoveries) for pruner in pruners]
    rows = [row for row in rows if row["seeds"]]
    found = correlations(students, recoveries)
    name = f"{outcome.study.name}.png"
    scatter(
        {f"recovery={recovery}": points(students, recovery) for recovery in recoveries},
        folder / name,
        "loss right after the cut",
        "FID after recovery ↓",
    )
    parts = [
        Table(rows, overview_columns(recoveries)),
        "## Does a figure right after the cut predict the recovered model?\n",
        *correlation_parts(found),
        "## Blocks that stay\n",
        *choices(outcome),
    ]
    return Report(parts, [name])


def students_of(outcome: Outcome) -> list[Student]:
    """Recovered models of a study, with their figures right after the cut."""
    students = []
    for cell, record in outcome.complete():
        cut = record.figures(CUT)
        students.append(
            Student(
                cell.row.labels["pruner"],
                cell.row.labels["recovery"],
                cell.seed,
                tuple(record.decision.get("kept") or ()),
                {"calibration_loss": cut["held_out_loss"], "pruned_fid": cut["fid"]},
                record.figures(cell.row.model),
            )
        )
    return students


def overview_row(
    students: Sequence[Student], pruner: str, recoveries: Sequence[str]
) -> dict[str, Any]:
    """One pruner: figures right after the cut, and the scores after each recovery."""
    own = [student for student in students if student.pruner == pruner]
    row: dict[str, Any] = {"pruner": pruner, "seeds": len({student.seed for student in own})}
    # The same cut counts once per seed, however often it was recovered.
    cuts = {student.seed: student.before for student in own}
    for figure in ("calibration_loss", "pruned_fid"):
        row[figure] = spread([cut[figure] for cut in cuts.values()])
    for recovery in recoveries:
        members = [student.after for student in own if student.recovery == recovery]
        for figure in ("fid", "held_out_loss"):
            row[f"{figure} {recovery}"] = spread([after[figure] for after in members])
    return row


def overview_columns(recoveries: Sequence[str]) -> dict[str, Column]:
    """Columns of the table of pruners."""
    return {
        "pruner": Column("pruner"),
        "seeds": Column("seeds"),
        "calibration_loss": Column("loss after the cut", ".4f"),
        "pruned_fid": Column("FID after the cut", ".2f"),
        **{f"fid {name}": Column(f"FID, {name}", ".3f", "lower") for name in recoveries},
        **{f"held_out_loss {name}": Column(f"loss, {name}", ".4f", "lower") for name in recoveries},
    }
