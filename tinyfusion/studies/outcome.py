"""A study's table: its rows, the figures of their runs over seeds, and the paper's beside them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tinyfusion.errors import InputError
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.files import write_json, write_text
from tinyfusion.report.columns import FIGURES
from tinyfusion.report.paper import PaperTable, paper_table
from tinyfusion.studies.definition import Row, Study
from tinyfusion.studies.records import Record, Records
from tinyfusion.studies.works import CHOICE, Cell, Work


@dataclass(frozen=True)
class Outcome:
    """A study and what is known of its cells.

    Attributes:
        study: the study.
        cells: its cells.
        records: the record of each, in the same order; ``None`` for what has not been run.
        known: all records.
        folders: folders of the works whose runs are here.
    """

    study: Study
    cells: Sequence[Cell]
    records: Sequence[Record | None]
    known: Records
    folders: Mapping[Work, Path] = field(default_factory=dict)

    def complete(self) -> list[tuple[Cell, Record]]:
        """The cells that have been run, with their records.

        Raises:
            InputError: none has.
        """
        pairs = zip(self.cells, self.records, strict=True)
        found = [(cell, record) for cell, record in pairs if record is not None]
        if not found:
            raise InputError(f"study {self.study.name} has no complete run yet")
        return found

    def of(self, row: Row) -> list[tuple[Cell, Record | None]]:
        """Cells of a row, with their records."""
        pairs = zip(self.cells, self.records, strict=True)
        return [(cell, record) for cell, record in pairs if cell.row is row]

    def values(self, row: Row, figure: str) -> list[float]:
        """A figure of the runs of a row, by seed."""
        found = []
        for cell, record in self.of(row):
            if record is not None:
                figures = figures_of(cell, record)
                if figures.get(figure) is not None:
                    found.append(figures[figure])
        return found

    def stale(self, row: Row) -> list[str]:
        """Modules that have changed since a row's runs."""
        found = [self.known.stale(record) for _, record in self.of(row) if record is not None]
        return sorted({name for names in found for name in names})


def figures_of(cell: Cell, record: Record) -> dict[str, float]:
    """Figures of a cell's model, with its loss right after the cut."""
    figures = dict(record.figures(cell.row.model))
    pruned = record.figures("pruned")
    if "held_out_loss" in pruned:
        figures["calibration_loss"] = pruned["held_out_loss"]
    first = record.curves.get("recover/train/features")
    if first:
        figures["first_feature_loss"] = first[0][1]
    return figures


def command_of(cell: Cell) -> list[str]:
    """Command lines that make a cell by themselves, in order."""
    lines: dict[str, None] = {}
    _add_command(cell.work, None, lines)
    return list(lines)


def _add_command(work: Work, folder: str | None, lines: dict[str, None]) -> None:
    places = {}
    parts = [work]
    for name, need in work.needs:
        if name == CHOICE:  # `run` chooses as well, if no decision is given
            parts.insert(0, need)
    for part in parts:
        for name, need in part.needs:
            if name != CHOICE:
                places[name] = f"outputs/{need.name}"
                _add_command(need, places[name], lines)
    overrides: dict[str, str] = {}
    for part in parts:
        for text in part.filled(places):
            if not text.startswith("decision={"):
                overrides.setdefault(text.partition("=")[0], text)
    place = [] if folder is None else [f"hydra.run.dir={folder}"]
    lines[shlex.join(["tinyfusion", work.command, *overrides.values(), *place])] = None


def report(outcome: Outcome, folder: Path) -> str:
    """Write a study's table as ``NAME.md`` and ``NAME.json``; returns the text.

    Args:
        outcome: the study and its records.
        folder: where the files go.
    """
    study = outcome.study
    text = "\n".join([f"# {study.title}\n", *body(outcome)])
    write_text(folder / f"{study.name}.md", text)
    write_json(folder / f"{study.name}.json", table_rows(outcome)[0])
    return text


def body(outcome: Outcome) -> list[str]:
    """The table, and what a reader has to know of it, as parts of a Markdown text."""
    study = outcome.study
    rows, columns = table_rows(outcome)
    parts = [
        f"Scale `{study.scale}`. {study.note}\n" if study.note else f"Scale `{study.scale}`.\n"
    ]
    parts.append(markdown_table(rows, columns))
    parts += footnotes(outcome)
    return parts


def footnotes(outcome: Outcome) -> list[str]:
    """What was not run, and what was run by other versions of the code."""
    study = outcome.study
    parts = []
    missing = [
        cell
        for cell, record in zip(outcome.cells, outcome.records, strict=True)
        if record is None
    ]  # fmt: skip
    if missing:
        parts.append(
            f"\n{len(missing)} of {len(outcome.cells)} runs are missing; `tinyfusion study "
            f"{study.name} scale={study.scale}` fills them. The first by itself:\n"
            + "".join(f"\n    {line}\n" for line in command_of(missing[0]))
        )
    stale = {row.name: outcome.stale(row) for row in study.rows}
    stale = {name: modules for name, modules in stale.items() if modules}
    if stale:
        modules = sorted({name for names in stale.values() for name in names})
        parts.append(
            f"\n* Run before changes of {', '.join(f'`{name}`' for name in modules[:4])}"
            f"{' and others' if len(modules) > 4 else ''}.\n"
        )
    if study.paper.get("table"):
        parts += [f"\nPaper: {note}\n" for note in paper_table(study.paper["table"]).notes]
    return parts


def table_rows(outcome: Outcome) -> tuple[list[dict[str, Any]], dict[str, Column]]:
    """Rows of a study's table and its columns: measured figures, then the paper's."""
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
    return rows, columns


def _row(outcome: Outcome, row: Row, paper: PaperTable | None) -> dict[str, Any]:
    made: dict[str, Any] = dict(row.labels)
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


def spread(values: Sequence[float]) -> Any:
    """Mean and standard deviation of several values, one by itself, or ``None``."""
    if not values:
        return None
    return (mean(values), stdev(values)) if len(values) > 1 else values[0]
