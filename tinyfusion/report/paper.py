"""The published numbers of TinyFusion (arXiv 2412.01199), to stand beside measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

import tinyfusion.assets
from tinyfusion.errors import InputError

FILE = Path(tinyfusion.assets.__file__).with_name("paper_tables.yaml")

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class PaperColumn:
    """A column of a published table.

    Attributes:
        name: such as ``"FID"``; rows use it as key.
        unit: what its values are.
        better: the direction of quality; ``None`` if it has none.
        note: a remark.
    """

    name: str
    unit: str
    better: Better | None = None
    note: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A published table.

    Attributes:
        number: in the paper.
        caption: what it shows.
        columns: its columns in order.
        rows: values by column; ``None`` where nothing, a dash or NaN is printed.
        notes: remarks.
    """

    number: int
    caption: str
    columns: tuple[PaperColumn, ...]
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = field(default=())

    def row(self, where: Mapping[str, Any]) -> Mapping[str, Any]:
        """The one row with these values.

        Args:
            where: values by column.

        Raises:
            InputError: a column that the table does not have, or not exactly one such row.
        """
        unknown = [key for key in where if key not in {column.name for column in self.columns}]
        if unknown:
            valid = ", ".join(column.name for column in self.columns)
            raise InputError(f"table {self.number} has no column {unknown[0]!r}; valid: {valid}")
        found = [row for row in self.rows if all(row[key] == where[key] for key in where)]
        if len(found) != 1:
            said = ", ".join(f"{key}={value}" for key, value in where.items())
            raise InputError(f"table {self.number} has {len(found)} rows with {said}; valid: one")
        return found[0]


def paper_table(number: int) -> PaperTable:
    """A table of the paper by its number.

    Raises:
        InputError: there is no such table.
    """
    content = _content()["tables"]
    name = f"table_{number}"
    if name not in content:
        valid = ", ".join(key.removeprefix("table_") for key in content)
        raise InputError(f"the paper has no table {number}; valid: {valid}")
    found = content[name]
    return PaperTable(
        number=found["number"],
        caption=found["caption"],
        columns=tuple(PaperColumn(**column) for column in found["columns"]),
        rows=tuple(found["rows"]),
        notes=tuple(found.get("notes", ())),
    )


def paper_figure(number: int) -> Mapping[str, Any]:
    """The printed numbers of a figure of the paper, as the file has them.

    Raises:
        InputError: none are printed, or there is no such figure.
    """
    content = _content()["figures"]
    name = f"figure_{number}"
    if name not in content:
        valid = ", ".join(key.removeprefix("figure_") for key in content)
        raise InputError(f"no numbers of figure {number} are printed; valid: {valid}")
    return content[name]


@cache
def _content() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
