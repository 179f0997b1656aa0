"""A study with what is known of its runs: their figures over seeds, and what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tinyfusion.errors import InputError
from tinyfusion.report.paper import paper_table
from tinyfusion.studies.plans import Row, Study
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
        again: arguments that, behind the study's name and scale, ask for these cells.
    """

    study: Study
    cells: Sequence[Cell]
    records: Sequence[Record | None]
    known: Records
    folders: Mapping[Work, Path] = field(default_factory=dict)
    again: Sequence[str] = ()

    @property
    def pairs(self) -> list[tuple[Cell, Record | None]]:
        """The cells with their records."""
        return list(zip(self.cells, self.records, strict=True))

    def complete(self) -> list[tuple[Cell, Record]]:
        """The cells that have been run, with their records.

        Raises:
            InputError: none has.
        """
        found = [(cell, record) for cell, record in self.pairs if record is not None]
        if not found:
            raise InputError(f"study {self.study.name} has no complete run yet")
        return found

    def of(self, row: Row) -> list[tuple[Cell, Record | None]]:
        """Cells of a row, with their records."""
        return [(cell, record) for cell, record in self.pairs if cell.row is row]

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


def footnotes(outcome: Outcome) -> list[str]:
    """What was not run, and what was run by other versions of the code."""
    study = outcome.study
    parts = []
    missing = [cell for cell, record in outcome.pairs if record is None]
    if missing:
        again = shlex.join([study.name, f"scale={study.scale}", *outcome.again])
        parts.append(
            f"{len(missing)} of {len(outcome.cells)} runs are missing; `tinyfusion study {again}` "
            "fills them. The first by itself:\n"
            + "".join(f"\n    {line}\n" for line in command_of(missing[0]))
        )
    stale = {row.name: outcome.stale(row) for row in study.rows}
    stale = {name: modules for name, modules in stale.items() if modules}
    if stale:
        modules = sorted({name for names in stale.values() for name in names})
        parts.append(
            f"* Run before changes of {', '.join(f'`{name}`' for name in modules[:4])}"
            f"{' and others' if len(modules) > 4 else ''}.\n"
        )
    if study.paper.get("table"):
        parts += [f"Paper: {note}\n" for note in paper_table(study.paper["table"]).notes]
    return parts


def spread(values: Sequence[float]) -> Any:
    """Mean and standard deviation of several values, one by itself, or ``None``."""
    if not values:
        return None
    return (mean(values), stdev(values)) if len(values) > 1 else values[0]
