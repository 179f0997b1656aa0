"""Reports of studies as files: text, tables that programs and papers read, and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyfusion.figures.table import Table, csv_table, latex_table
from tinyfusion.files import write_text
from tinyfusion.report.page import page
from tinyfusion.report.paper import paper_table
from tinyfusion.report.runs import Run
from tinyfusion.settings.compose import locate
from tinyfusion.studies.outcome import Outcome, footnotes


@dataclass(frozen=True)
class Report:
    """What a study's report says below its title and note.

    Attributes:
        parts: pieces of Markdown, and tables among them, in order.
        pictures: names of the pictures that were drawn into its folder; they come first.
    """

    parts: Sequence[str | Table]
    pictures: Sequence[str] = ()

    @property
    def tables(self) -> list[Table]:
        """Its tables in order."""
        return [part for part in self.parts if isinstance(part, Table)]


def made(outcome: Outcome, folder: Path) -> Report:
    """The report on a study, by the function that its file names; pictures go into a folder.

    Raises:
        InputError: the function needs complete runs, and there is none.
    """
    make: Callable[[Outcome, Path], Report] = locate(outcome.study.report, "report")
    return make(outcome, folder)


def write(outcome: Outcome, folder: Path) -> tuple[str, Report]:
    """Write ``NAME.md``, its pictures, and each of its tables as CSV and LaTeX into a folder.

    Returns:
        The text of ``NAME.md``, and what it was made of.

    Raises:
        InputError: see `made`.
    """
    study, report = outcome.study, made(outcome, folder)
    head = [f"# {study.title}\n", f"Scale `{study.scale}`. {study.note}".rstrip() + "\n"]
    shown = [f"![{study.title}]({name})\n" for name in report.pictures]
    body = [part.markdown if isinstance(part, Table) else part for part in report.parts]
    # The last part may be a list, which a line right after it would be a part of.
    parts = ["\n".join([*head, *shown, *body]).rstrip("\n") + "\n", *footnotes(outcome)]
    text = "\n".join(parts).rstrip("\n") + "\n"
    write_text(folder / f"{study.name}.md", text)
    for table in report.tables:
        stem = "_".join(filter(None, (study.name, table.name)))
        write_text(folder / f"{stem}.csv", csv_table(table.rows, table.columns))
        latex = latex_table(table.rows, table.columns, study.title, table.within)
        write_text(folder / f"{stem}.tex", latex)
    return text, report


def write_page(outcome: Outcome, report: Report, runs: Sequence[Run], folder: Path) -> Path:
    """Write ``NAME.html``: the study's table beside the paper's, and its runs one by one.

    Args:
        outcome: the study and its records.
        report: what its report says, see `write`.
        runs: its runs; those that have figures are shown.
        folder: where the file goes.

    Returns:
        The file.

    Raises:
        InputError: a file of a run can't be read.
    """
    study = outcome.study
    html = page(
        [run for run in runs if run.result],
        study.title,
        folder,
        report.tables[0] if report.tables else None,
        paper_table(study.paper["table"]) if "table" in study.paper else None,
    )
    return write_text(folder / f"{study.name}.html", html)
