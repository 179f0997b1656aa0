"""What a study is: rows of runs, and how they map to a table of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tinyfusion.errors import InputError

PRUNED = "recovered"
"""The model whose figures a row shows, unless it says otherwise."""


@dataclass(frozen=True)
class WorkPlan:
    """A command line of a study, for any seed.

    Attributes:
        command: such as ``run``.
        overrides: its overrides without the seed.
        whole: whether a ``run`` makes its decision itself; else a ``prune`` before it does, which
            other rows may share.
        seed: its seed, whatever the row's is; ``None`` for the row's.
        choice_seed: seed of the decision alone; ``None`` for its own.
    """

    command: str
    overrides: tuple[str, ...]
    whole: bool = False
    seed: int | None = None
    choice_seed: int | None = None


@dataclass(frozen=True)
class Row:
    """A row of a study's table.

    Attributes:
        labels: what it is, by column.
        plan: what is run; ``None`` for a row that only the paper has.
        paper: values by which the paper's row is found; empty if there is none.
        model: which of a run's models its figures are of.
        seeds: its seeds; ``None`` for the study's.
        group: rows of one group are compared: the best of them is marked.
    """

    labels: Mapping[str, str]
    plan: WorkPlan | None
    paper: Mapping[str, Any] = field(default_factory=dict)
    model: str = PRUNED
    seeds: tuple[int, ...] | None = None
    group: str = ""

    @property
    def name(self) -> str:
        """Its labels in one."""
        return ", ".join(self.labels.values())


@dataclass(frozen=True)
class Study:
    """A study at one scale.

    Attributes:
        name: such as ``table4``.
        scale: such as ``digits``.
        title: what it shows.
        rows: its rows in order.
        works: what rows refer to as ``{name}``.
        seeds: seeds of all rows that have none of their own.
        columns: figures of the runs by name, with the column of the paper's table.
        paper: number of the paper's ``table`` or ``figure``; empty if there is none.
        report: dotted name of what makes its report.
        needs: keys that have to be given, such as ``checkpoint``.
        composed: whether its rows are only composed, not run.
        parameters: names whose values have to be given; ``{name}`` in overrides stands for them.
        note: what a reader is to know of the scale.
    """

    name: str
    scale: str
    title: str
    rows: tuple[Row, ...]
    works: Mapping[str, WorkPlan]
    seeds: tuple[int, ...]
    columns: Mapping[str, str | None]
    paper: Mapping[str, int]
    report: str
    needs: tuple[str, ...] = ()
    composed: bool = False
    parameters: tuple[str, ...] = ()
    note: str = ""

    def with_values(self, values: Mapping[str, str]) -> Study:
        """The study with values for its parameters.

        Raises:
            InputError: one is missing.
        """
        missing = [name for name in self.parameters if name not in values]
        if missing:
            raise InputError(
                f"{missing[0]}= must be given for study {self.name} at scale={self.scale}"
            )

        def filled(plan: WorkPlan) -> WorkPlan:
            overrides = list(plan.overrides)
            for name in self.parameters:
                overrides = [text.replace(f"{{{name}}}", values[name]) for text in overrides]
            return replace(plan, overrides=tuple(overrides))

        rows = (
            row if row.plan is None else replace(row, plan=filled(row.plan)) for row in self.rows
        )
        works = {name: filled(plan) for name, plan in self.works.items()}
        return replace(self, rows=tuple(rows), works=works)
