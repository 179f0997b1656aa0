"""Tables of studies: measured figures over seeds, and the paper's beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyfusion.figures.table import Column, Table
from tinyfusion.report.columns import FIGURES
from tinyfusion.report.paper import PaperTable, paper_table
from tinyfusion.studies.outcome import Outcome, spread
from tinyfusion.studies.plans import Row
from tinyfusion.studies.written import Report

GROUP = "_group"
"""Key of the group of rows that a row is compared with."""


def report(outcome: Outcome, folder: Path) -> Report:
    """The table of a study: a row for each of its rows, measured figures, then the paper's.

    Args:
        outcome: a study with columns.
        folder: not used; there is no picture.
    """
    study = outcome.study
    paper = paper_table(study.paper["table"]) if study.paper.get("table") else None
    labels = list(dict.fromkeys(key for row in study.rows for key in row.labels))
    columns = {key: Column(key.replace("_", " ")) for key in labels}
    columns |= {"seeds": Column("seeds")}
    columns |= {name: FIGURES.get(name, Column(name, ".4g")) for name in study.columns}
    rows = [_row(outcome, row, paper) for row in study.rows]
    for name in [name for name in study.columns.values() if name and paper]:
        assert paper is not None
        better = next((c.better for c in paper.columns if c.name == name), None)
        columns[f"paper {name}"] = Column(f"paper: {name}", "g", better)
    return Report([Table(rows, columns, within=(GROUP,))])


def _row(outcome: Outcome, row: Row, paper: PaperTable | None) -> dict[str, Any]:
    made: dict[str, Any] = {**row.labels, GROUP: row.group}
    done = [record for _, record in outcome.of(row) if record is not None]
    if outcome.stale(row):
        first = next(iter(made))
        made[first] = f"{made[first]} *"
    made["seeds"] = len(done) if row.plan is not None else None
    for figure in outcome.study.columns:
        made[figure] = spread(outcome.values(row, figure))
    if paper is not None and row.paper:
        printed = paper.row(row.paper)
        made |= {f"paper {name}": printed[name] for name in _names(outcome.study.columns)}
    return made


def _names(columns: Mapping[str, str | None]) -> list[str]:
    return [name for name in columns.values() if name]
