"""Reports of runs as they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyfusion.errors import InputError
from tinyfusion.figures.table import Rows, csv_table, latex_table, markdown_table
from tinyfusion.figures.terminal_table import print_table
from tinyfusion.report.columns import FIGURES, SHORT
from tinyfusion.report.labels import common_folder, run_name
from tinyfusion.report.reading import find_runs
from tinyfusion.report.runs import Run
from tinyfusion.report.tables import WITHIN, protocol_of, scored, table_of

MOST_NAMES = 6
"""Runs without a row that are named, of each kind."""

MOST_LETTERS = 40
"""Of a run's name in a table."""


def print_runs(
    runs: Sequence[Run],
    title: str,
    form: str = "text",
    columns: Sequence[str] | None = None,
    sort: str | None = None,
) -> None:
    """Print the table of runs, and as text which of them it leaves out.

    Args:
        runs: the runs.
        title: stands above the table.
        form: ``text``, ``md``, ``csv`` or ``latex``.
        columns: see `table_of`.
        sort: see `table_of`.

    Raises:
        InputError: see `table_of`.
    """
    table = table_of(runs, columns, sort)
    if form == "md":
        print(markdown_table(table.rows, table.columns, WITHIN), end="")
    elif form == "csv":
        print(csv_table(table.rows, table.columns), end="")
    elif form == "latex":
        print(latex_table(table.rows, table.columns, title, WITHIN), end="")
    else:
        protocols = list(dict.fromkeys(filter(None, map(protocol_of, scored(runs)))))
        heading = ": ".join([title, *(protocols if len(protocols) == 1 else [])])
        if table.rows:
            print_table(_narrowed(table.rows), table.columns, heading, within=WITHIN)
        if table.hidden:
            print(f"further keys differ: {', '.join(table.hidden)}")
        print_left_out(runs)


def print_left_out(runs: Sequence[Run]) -> None:
    """Print which runs a table has no row for."""
    below = common_folder(runs)
    for state in ("failed", "unfinished"):
        names = [run_name(run, below) for run in runs if run.state == state]
        if names:
            print(f"{state}: {len(names)} of {len(runs)} runs: {_listed(names)}")
    bare = [run for run in runs if run.state == "finished" and not run.result]
    for command in sorted({run.command for run in bare}):
        names = [run_name(run, below) for run in bare if run.command == command]
        print(f"figures of {command or 'another kind'}, in files of their own: {_listed(names)}")


def print_sweep(folder: Path) -> None:
    """Print the main figures of a sweep's runs beside what was swept, if at least two have any.

    Args:
        folder: the sweep's.
    """
    try:
        runs = find_runs([folder])
    except InputError:  # nothing was run, or nothing of this kind
        return
    if len(scored(runs)) < 2:
        return
    whole = table_of(runs)
    chosen = {
        key: column
        for key, column in whole.columns.items()
        if key in SHORT or key not in FIGURES
    }  # fmt: skip
    print_table(_narrowed(whole.rows), chosen, f"{folder.name}: {len(runs)} runs", within=WITHIN)
    print(f"all figures, samples and curves: tinyfusion report {folder}")


def _narrowed(rows: Rows) -> list[dict[str, Any]]:
    """Rows with the middle of long names of runs left out; the other formats have all of it."""
    found = []
    for row in rows:
        name, half = row["run"], MOST_LETTERS // 2
        short = f"{name[: half - 1]}…{name[-half:]}" if len(name) > MOST_LETTERS else name
        found.append({**row, "run": short})
    return found


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
