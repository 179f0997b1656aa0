"""One call of a study: find what is complete, run the rest, report; or only say what would run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import tinyfusion
from tinyfusion.errors import InputError
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.runtime.folder import in_use
from tinyfusion.settings.compose import locate
from tinyfusion.studies.carry_out import carry_out
from tinyfusion.studies.definition import content_of, names
from tinyfusion.studies.identity import is_of_results
from tinyfusion.studies.outcome import Outcome, command_of
from tinyfusion.studies.plans import Study
from tinyfusion.studies.records import Records, is_finished, run_of
from tinyfusion.studies.state import StudyState
from tinyfusion.studies.works import Cell, Work, cells_of
from tinyfusion.studies.written import write, write_page
from tinyfusion.text import readable_duration

PUBLISHED = Path(tinyfusion.__file__).resolve().parents[1] / "docs" / "results"
"""Tables, figures and records that are part of a checkout."""

RECORDS = "records"


@dataclass(frozen=True)
class StudySession:
    """A study, its cells and what is known of them.

    Attributes:
        study: the study.
        cells: its cells.
        state: looks up their works.
        launcher: overrides of Hydra's own part, such as ``hydra/launcher=joblib``.
        again: arguments that, behind the study's name and scale, ask for these cells.
    """

    study: Study
    cells: Sequence[Cell]
    state: StudyState
    launcher: Sequence[str] = ()
    again: Sequence[str] = ()

    @classmethod
    def begin(
        cls,
        study: Study,
        root: Path,
        given: Sequence[str] = (),
        seeds: Sequence[int] = (),
        launcher: Sequence[str] = (),
        folders: Sequence[Path] = (),
        published: Path | None = None,
    ) -> StudySession:
        """A study with the records that are committed and the runs below a folder.

        Args:
            study: the study.
            root: folder of studies' runs.
            given: overrides for every run, and values of the study's parameters.
            seeds: instead of the study's.
            launcher: overrides of Hydra's own part.
            folders: further configuration folders.
            published: folder whose ``records`` are known; ``None`` for `PUBLISHED`.

        Raises:
            InputError: a parameter or a key that is needed is not given, records can't be read,
                or a row refers to what there is not.
        """
        again = [*given, *([f"seeds={','.join(map(str, seeds))}"] if seeds else [])]
        again += [text for folder in folders for text in ("--config-dir", str(folder))]
        study = study.with_values(dict(text.split("=", 1) for text in given))
        passed_on = [text for text in given if text.split("=")[0] not in study.parameters]
        there = {text.split("=")[0].lstrip("+") for text in passed_on if not text.endswith("=")}
        if missing := [key for key in study.needs if key not in there]:
            raise InputError(
                f"{missing[0]}= must be given for study {study.name} at scale={study.scale}"
            )
        records = Records(sorted(((published or PUBLISHED) / RECORDS).glob("*.jsonl")))
        state = StudyState(root, records, folders)
        changed = [text for text in passed_on if is_of_results(text.partition("=")[0])]
        if changed:  # a reader of the report is to know
            note = f"{study.note} Every run with `{' '.join(changed)}`.".strip()
            study = replace(study, note=note)
        return cls(study, cells_of(study, passed_on, seeds), state, launcher, again)

    @property
    def works(self) -> list[Work]:
        """What the cells are made by."""
        return [cell.work for cell in self.cells]

    def check(self) -> None:
        """Refuse a report that there is not, and wrong configurations of any work.

        Raises:
            InputError: one is wrong.
        """
        locate(self.study.report, "report")
        for work in self.works:
            self.state.find(work)

    def run(self) -> list[Work]:
        """Do what is still to be done, if all of it can be done; see `carry_out`."""
        self.check()
        group = f"{self.study.name}-{self.study.scale}"
        return carry_out(self.state, self.works, self.launcher, group)

    def outcome(self) -> Outcome:
        """The cells and their records as they are now."""
        self.state.look_again()
        found = {work: self.state.find(work) for work in self.works}
        records = [found[work].record for work in self.works]
        folders = {work: one.folder for work, one in found.items() if is_finished(one.folder)}
        known = self.state.records
        return Outcome(self.study, self.cells, records, known, folders, self.again)

    def report(self, outcome: Outcome, folder: Path) -> str:
        """Write the study's report into a folder, with a page of its runs; returns its text.

        Raises:
            InputError: it needs complete runs, and there is none; or a file can't be read.
        """
        text, report = write(outcome, folder)
        runs = {}
        for cell, record in outcome.pairs:
            found = self.state.find(cell.work)
            if record is not None:
                config = {**self.state.config_of(cell.work), "seed": cell.seed}
                runs[found.folder] = run_of(record, found.folder, config)
        write_page(outcome, report, list(runs.values()), folder)
        return text

    def publish(self, outcome: Outcome, folder: Path) -> None:
        """Write the report, and the records behind it, where they are committed from.

        Records that are there already stay, such as those of other seeds.
        """
        write(outcome, folder)
        file = folder / RECORDS / f"{self.study.name}.{self.study.scale}.jsonl"
        there = Records([file] if file.is_file() else [])
        works = (work for cell in self.cells for work in cell.work.all())
        found = [known for work in works if (known := self.state.find(work).identity) is not None]
        self.state.records.take(there)
        if identities := dict.fromkeys([*there, *found]):
            self.state.records.write(file, identities)

    def forecast(self) -> str:
        """What would be run, and how long it took so far for works like it."""
        pending = self.state.pending(self.works)
        every = {work for cell in self.cells for work in cell.work.all()}
        by_command: dict[str, list[float]] = {}
        for work in every:
            record = self.state.find(work).record
            if record is not None:
                by_command.setdefault(work.command, []).append(record.seconds)
        rows, total, unknown = [], 0.0, 0
        for command in dict.fromkeys(work.command for work in pending):
            own = [work for work in pending if work.command == command]
            begun = sum(self.state.find(work).begun for work in own)
            each = fmean(by_command[command]) if command in by_command else None
            total += len(own) * (each or 0.0)
            unknown += len(own) if each is None else 0
            rows.append(
                {
                    "command": command,
                    "runs": len(own),
                    "begun": begun,
                    "each": None if each is None else readable_duration(each),
                    "together": None if each is None else readable_duration(len(own) * each),
                }
            )
        complete = sum(self.state.find(work).record is not None for work in self.works)
        text = f"{self.study.name}, scale={self.study.scale}: {complete} of {len(self.works)} "
        text += "cells are complete.\n"
        if not pending:
            return text
        text += "\nTo be run, one after the other:\n\n" + markdown_table(rows, _FORECAST)
        times = [f"about {readable_duration(total)}"] if total else []
        times += [f"{unknown} runs of which no time is known"] if unknown else []
        text += f"\nTogether {', and '.join(times)}.\n"
        busy = sum(in_use(self.state.find(work).folder) for work in pending)
        text += f"{busy} of them are being run by other processes.\n" if busy else ""
        first = next((c for c in self.cells if self.state.find(c.work).record is None), None)
        if first is not None:
            text += "\nThe first cell by itself:\n\n"
            text += "".join(f"    {line}\n" for line in command_of(first))
        return text


_FORECAST = {
    "command": Column("command"),
    "runs": Column("runs", "d"),
    "begun": Column("begun", "d"),
    "each": Column("each, on average so far"),
    "together": Column("together"),
}


def listing(folders: Sequence[Path] = ()) -> str:
    """All studies, a line each.

    Args:
        folders: further configuration folders (``--config-dir``).
    """
    rows = []
    for name in names(folders):
        content = content_of(name, folders)
        scales = ", ".join(content.get("scales", {}))
        rows.append({"study": name, "scales": scales, "title": content.get("title", "")})
    columns = {key: Column(key) for key in ("study", "scales", "title")}
    return markdown_table(rows, columns)
