"""Tables of results in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tinyfusion.figures.table import Column, Rows, is_numeric, marks, shown_cells


def print_table(
    rows: Rows,
    columns: Mapping[str, Column],
    title: str | None = None,
    console: Console | None = None,
    within: Sequence[str] = (),
) -> None:
    """Print rows as a table in the terminal; best values are bold, second-best underlined.

    Args:
        rows: see `markdown_table`.
        columns: see `markdown_table`.
        title: line above the table.
        console: where to print; default: standard output.
        within: see `marks`.
    """
    console = console or Console()
    table = _rich(rows, columns, title, within)
    needed = Console(file=console.file, width=10_000).measure(table).maximum
    if not console.is_terminal:
        # A log file has no width that a table would have to fit.
        console = Console(file=console.file, width=needed)
    elif needed > console.width and len(rows) < len(columns):
        table = _rich(*_turned(rows, columns), title)
    console.print(table)


def _rich(
    rows: Rows, columns: Mapping[str, Column], title: str | None, within: Sequence[str] = ()
) -> Table:
    # Text objects, because rich would read "[3,4]" in plain strings as markup.
    table = Table(title=None if title is None else Text(title), title_justify="left")
    for key, column in columns.items():
        justify: Literal["left", "right"] = "right" if is_numeric(rows, key) else "left"
        table.add_column(Text(column.head), justify=justify, overflow="fold")
    styles = {"best": "bold", "second": "underline", "": ""}
    for cells, signs in zip(shown_cells(rows, columns), marks(rows, columns, within), strict=True):
        texts = zip(cells, signs.values(), strict=True)
        table.add_row(*(Text(cell, styles[mark]) for cell, mark in texts))
    return table


def _turned(rows: Rows, columns: Mapping[str, Column]) -> tuple[Rows, Mapping[str, Column]]:
    """Rows and columns exchanged, for narrow terminals; the first column becomes the heads."""
    first, *others = columns
    cells = shown_cells(rows, columns)
    heads = {first: columns[first]} | {str(i): Column(line[0]) for i, line in enumerate(cells)}
    turned = [
        {first: columns[key].head} | {str(i): line[place] for i, line in enumerate(cells)}
        for place, key in enumerate(others, start=1)
    ]
    return turned, heads
