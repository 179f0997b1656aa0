"""Writing a report of runs: the page, and the table in three formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinyfusion.errors import InputError, refused_by_system
from tinyfusion.figures.table import csv_table, latex_table, markdown_table
from tinyfusion.files import write_text
from tinyfusion.report.page import page
from tinyfusion.report.paper import PaperTable
from tinyfusion.report.runs import Run
from tinyfusion.report.tables import WITHIN, table_of

NAME = "report"


def write_report(
    runs: Sequence[Run],
    folder: Path | str,
    title: str,
    paper: PaperTable | None = None,
    columns: Sequence[str] | None = None,
    sort: str | None = None,
) -> dict[str, Path]:
    """Write ``report.html``, ``report.md``, ``report.csv`` and ``report.tex`` into a folder.

    Args:
        runs: what it tells of, see `find_runs`.
        folder: where the files go.
        title: the page's heading and the caption of tables.
        paper: a table of the paper to show on the page as it was printed.
        columns: of the table of runs, see `table_of`.
        sort: what it is sorted by, see `table_of`.

    Returns:
        The files by their endings.

    Raises:
        InputError: a file can't be written, or see `page` and `table_of`.
    """
    folder = Path(folder)
    found = table_of(runs, columns, sort)
    contents = {
        "html": page(runs, title, folder, None, paper, columns, sort),
        "md": f"# {title}\n\n{markdown_table(found.rows, found.columns, WITHIN)}",
        "csv": csv_table(found.rows, found.columns),
        "tex": latex_table(found.rows, found.columns, title, WITHIN),
    }
    return {
        ending: write_part(folder / f"{NAME}.{ending}", content)
        for ending, content in contents.items()
    }


def write_part(file: Path, content: str) -> Path:
    """Write one file of a report.

    Raises:
        InputError: it can't be written.
    """
    try:
        return write_text(file, content)
    except OSError as error:
        refusal = refused_by_system(error, file)
        raise InputError(f"the report can't be written: {refusal}") from None
