"""Tables of results, as Markdown and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

MISSING = "-"

Rows = Sequence[Mapping[str, Any]]
"""One mapping per row, from column key to value."""


class Column(NamedTuple):
    """How one column is shown.

    Attributes:
        header: name with its unit.
        format: format specification of the values, such as ``".2f"`` or ``",d"``.
    """

    header: str
    format: str = ""


def markdown_table(rows: Rows, columns: Mapping[str, Column]) -> str:
    """Format rows as a Markdown table.

    Args:
        rows: values by column key. ``None`` or an absent key shows as "-", text as it is, a
            pair of numbers as "mean ± spread".
        columns: the columns in their order, by key.

    Returns:
        The table, ending in a line break; columns of numbers are aligned to the right.
    """
    heads = [column.header.replace("|", "\\|") for column in columns.values()]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in _cells(rows, columns)]
    right = [_is_numeric(rows, key) for key in columns]
    widths = [max(3, *map(len, column)) for column in zip(heads, *cells, strict=True)]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(texts, widths, right, strict=True)
        ]
        return "| " + " | ".join(padded) + " |\n"

    rule = [
        "-" * (width - 1) + ":" if to_right else "-" * width
        for width, to_right in zip(widths, right, strict=True)
    ]
    return line(heads) + line(rule) + "".join(map(line, cells))


def print_table(
    rows: Rows,
    columns: Mapping[str, Column],
    title: str | None = None,
    console: Console | None = None,
) -> None:
    """Print rows as a table in the terminal.

    Args:
        rows: see `markdown_table`.
        columns: see `markdown_table`.
        title: line above the table.
        console: where to print; default: standard output.
    """
    console = console or Console()
    table = _rich(rows, columns, title)
    needed = Console(file=console.file, width=10_000).measure(table).maximum
    if not console.is_terminal:
        # A log file has no width that a table would have to fit.
        console = Console(file=console.file, width=needed)
    elif needed > console.width and len(rows) < len(columns):
        table = _rich(*_turned(rows, columns), title)
    console.print(table)


def _rich(rows: Rows, columns: Mapping[str, Column], title: str | None) -> Table:
    # Text objects, because rich would read "[3,4]" in plain strings as markup.
    table = Table(title=None if title is None else Text(title), title_justify="left")
    for key, column in columns.items():
        justify: Literal["left", "right"] = "right" if _is_numeric(rows, key) else "left"
        table.add_column(Text(column.header), justify=justify, overflow="fold")
    for cells in _cells(rows, columns):
        table.add_row(*map(Text, cells))
    return table


def _turned(rows: Rows, columns: Mapping[str, Column]) -> tuple[Rows, Mapping[str, Column]]:
    """Rows and columns exchanged, for narrow terminals; the first column becomes the heads."""
    first, *others = columns
    cells = _cells(rows, columns)
    heads = {first: columns[first]} | {str(i): Column(line[0]) for i, line in enumerate(cells)}
    turned = [
        {first: columns[key].header} | {str(i): line[place] for i, line in enumerate(cells)}
        for place, key in enumerate(others, start=1)
    ]
    return turned, heads


def _cells(rows: Rows, columns: Mapping[str, Column]) -> list[list[str]]:
    return [[_show(row.get(key), column.format) for key, column in columns.items()] for row in rows]


def _show(value: Any, specification: str) -> str:
    if value is None:
        return MISSING
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, tuple | list):
        return " ± ".join(_show(part, specification) for part in value)
    return format(value, specification)


def _is_numeric(rows: Rows, key: str) -> bool:
    values = [row.get(key) for row in rows]
    return not any(isinstance(value, str | bool) for value in values) and any(
        value is not None for value in values
    )
