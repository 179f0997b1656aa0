"""Tables of results, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

MISSING = "-"

Better = Literal["lower", "higher"]
Mark = Literal["best", "second", ""]
ARROWS: dict[Better | None, str] = {"lower": " \u2193", "higher": " \u2191", None: ""}

Rows = Sequence[Mapping[str, Any]]
"""One mapping per row, from column key to value."""


class Column(NamedTuple):
    """How one column is shown.

    Attributes:
        header: name with its unit.
        format: format specification of the values, such as ``".2f"`` or ``",d"``.
        better: the direction of quality, shown as an arrow in the header; best and second-best
            values of the column are marked. ``None``: it has none.
    """

    header: str
    format: str = ""
    better: Better | None = None

    @property
    def head(self) -> str:
        """The header with its arrow."""
        return self.header + ARROWS[self.better]


def marks(
    rows: Rows, columns: Mapping[str, Column], within: Sequence[str] = ()
) -> list[dict[str, Mark]]:
    """Which cells hold the best and the second-best value of their column.

    Values that are shown alike are equal: several may be best. A column all of whose values are
    equal has no best one, and the worse of two values is not marked as second-best.

    Args:
        rows: see `markdown_table`. Of a pair (mean, spread) the mean counts.
        columns: see `markdown_table`; those without a direction of quality have no marks.
        within: keys of columns; only rows that agree in them are compared.

    Returns:
        For each row the mark of each column, ``""`` where there is none.
    """
    found: list[dict[str, Mark]] = [dict.fromkeys(columns, "") for _ in rows]
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(tuple(str(row.get(key)) for key in within), []).append(place)
    for key, column in columns.items():
        if column.better is None:
            continue
        for members in groups.values():
            values = {place: _mean(rows[place].get(key)) for place in members}
            known = {place: value for place, value in values.items() if value is not None}
            order = sorted(known, key=lambda p: known[p], reverse=column.better == "higher")
            shown = {place: _show(known[place], column.format) for place in order}
            levels = list(dict.fromkeys(shown.values()))
            for place, text in shown.items():
                if text == levels[0] and len(levels) > 1:
                    found[place][key] = "best"
                elif len(levels) > 2 and text == levels[1]:
                    found[place][key] = "second"
    return found


def markdown_table(rows: Rows, columns: Mapping[str, Column], within: Sequence[str] = ()) -> str:
    """Format rows as a Markdown table; the best values are bold, the second-best in italics.

    Args:
        rows: values by column key. ``None`` or an absent key shows as "-", text as it is, a
            pair of numbers as "mean ± spread".
        columns: the columns in their order, by key.
        within: see `marks`.

    Returns:
        The table, ending in a line break; columns of numbers are aligned to the right.
    """
    marked = {"best": "**{}**", "second": "*{}*", "": "{}"}
    heads = [column.head.replace("|", "\\|") for column in columns.values()]
    cells = [
        [
            marked[mark].format(cell.replace("|", "\\|"))
            for cell, mark in zip(line, signs.values(), strict=True)
        ]
        for line, signs in zip(
            shown_cells(rows, columns), marks(rows, columns, within), strict=True
        )
    ]
    right = [is_numeric(rows, key) for key in columns]
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


class Table(NamedTuple):
    """A table with what it takes to show it.

    Attributes:
        rows: see `markdown_table`.
        columns: see `markdown_table`.
        name: is added to the names of its files; the main table of a report has none.
        within: only rows that agree in these keys are compared, see `marks`.
    """

    rows: Rows
    columns: Mapping[str, Column]
    name: str = ""
    within: tuple[str, ...] = ()

    @property
    def markdown(self) -> str:
        """The table as Markdown."""
        return markdown_table(self.rows, self.columns, self.within)


def csv_table(rows: Rows, columns: Mapping[str, Column]) -> str:
    """Format rows as CSV (RFC 4180, but lines end in a line feed), to be read by other programs.

    Numbers are written in full, what is missing as an empty cell, and a pair (mean, spread) in
    two columns, the second named ``KEY_std``. The header holds the keys.

    Args:
        rows: see `markdown_table`.
        columns: see `markdown_table`.
    """
    spread = {
        key for key in columns for row in rows if isinstance(row.get(key), tuple | list)
    }  # fmt: skip
    names = [name for key in columns for name in ([key, f"{key}_std"] if key in spread else [key])]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        line: dict[str, Any] = {}
        for key in columns:
            value = row.get(key)
            if isinstance(value, tuple | list):
                line |= {key: value[0], f"{key}_std": value[1]}
            else:
                line[key] = value
        writer.writerow(line)
    return out.getvalue()


def latex_table(
    rows: Rows,
    columns: Mapping[str, Column],
    caption: str | None = None,
    within: Sequence[str] = (),
) -> str:
    """Format rows as a LaTeX table; it needs the package booktabs.

    The best values are bold, the second-best underlined.

    Args:
        rows: see `markdown_table`.
        columns: see `markdown_table`.
        caption: makes it a ``table`` with a caption instead of a bare ``tabular``.
        within: see `marks`.
    """
    marked = {"best": "\\textbf{%s}", "second": "\\underline{%s}", "": "%s"}
    layout = "".join("r" if is_numeric(rows, key) else "l" for key in columns)
    heads = [_latex(column.head) for column in columns.values()]
    body = [
        [marked[mark] % _latex(cell) for cell, mark in zip(line, signs.values(), strict=True)]
        for line, signs in zip(
            shown_cells(rows, columns), marks(rows, columns, within), strict=True
        )
    ]
    lines = [f"\\begin{{tabular}}{{{layout}}}", "\\toprule"]
    lines += [" & ".join(heads) + r" \\", "\\midrule"]
    lines += [" & ".join(cells) + r" \\" for cells in body]
    lines += ["\\bottomrule", "\\end{tabular}"]
    if caption is not None:
        lines = [
            "\\begin{table}", "\\centering", f"\\caption{{{_latex(caption)}}}", *lines,
            "\\end{table}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": "$|$", "\u00b1": r"$\pm$", "\u2193": r"$\downarrow$",
    "\u2191": r"$\uparrow$", "\u00d7": r"$\times$",
}  # fmt: skip


def _latex(text: str) -> str:
    """Plain text as LaTeX shows it."""
    return re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], text)


def shown_cells(rows: Rows, columns: Mapping[str, Column]) -> list[list[str]]:
    """The text of every cell, row by row, as all tables show it."""
    return [[_show(row.get(key), column.format) for key, column in columns.items()] for row in rows]


def _mean(value: Any) -> float | None:
    """The number that a cell is compared by; ``None`` if it holds none."""
    if isinstance(value, tuple | list):
        value = value[0] if value else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return value


def _show(value: Any, specification: str) -> str:
    if value is None:
        return MISSING
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, tuple | list):
        return " ± ".join(_show(part, specification) for part in value)
    return format(value, specification)


def is_numeric(rows: Rows, key: str) -> bool:
    """Whether a column holds numbers alone, and any; such columns are aligned to the right."""
    values = [row.get(key) for row in rows]
    return not any(isinstance(value, str | bool) for value in values) and any(
        value is not None for value in values
    )
