"""The table of some runs: what differs between them, and their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tinyfusion.errors import InputError
from tinyfusion.figures.table import Column
from tinyfusion.metrics.reporting import for_table, guidance_words
from tinyfusion.report.columns import FIGURES, PRIMARY, USUAL
from tinyfusion.report.differences import heading, shown, varying
from tinyfusion.report.labels import SEEDS, common_folder, needed_keys, run_name
from tinyfusion.report.runs import Run

MOST_SETTINGS = 10
"""Columns of settings, unless columns are named."""

WITHIN = ("_model", "_budget", "_protocol")
"""Keys of a row that only comparable runs agree in: the first model, what is left of it, and how
it was scored. They are not shown."""


@dataclass(frozen=True)
class RunTable:
    """A table of runs.

    Attributes:
        rows: values by column key; also those of `WITHIN`.
        columns: the columns in their order.
        runs: the runs behind each row; several if they differ in nothing but their seed.
        settings: keys of the columns that tell the rows apart.
        hidden: settings that differ as well, but have no column.
    """

    rows: Sequence[Mapping[str, Any]]
    columns: Mapping[str, Column]
    runs: Sequence[Sequence[Run]]
    settings: Sequence[str] = ()
    hidden: Sequence[str] = ()


def scored(runs: Sequence[Run]) -> list[Run]:
    """Those of some runs that have figures."""
    return [run for run in runs if run.result]


def table_of(
    runs: Sequence[Run],
    columns: Sequence[str] | None = None,
    sort: str | None = None,
    merge: bool = True,
) -> RunTable:
    """A table of the runs that have figures.

    Args:
        runs: any runs.
        columns: keys of figures, dotted paths into the configuration, ``run``, ``method`` or
            ``seeds``; default: what differs, and all figures that were measured.
        sort: the column to sort by, best first where its values have a direction of quality;
            default: by what is left of which model, then by the first of `PRIMARY`.
        merge: make one row of runs that differ in nothing but their seed, with mean and standard
            deviation.

    Raises:
        InputError: a column that no run has a value for, or ``sort`` names no column.
    """
    runs = scored(runs)
    keys = varying([run for run in runs if run.config])
    groups = _merged(runs, keys) if merge else [[run] for run in runs]
    rows = [_row(group, keys, common_folder(runs)) for group in groups]
    figures = [key for key in FIGURES if any(row.get(key) is not None for row in rows)]
    settings = [key for key in keys if key not in SEEDS or not merge]
    methods = {row["method"] for row in rows} - {None}
    if len(methods) > 1:
        settings = ["method", *(key for key in settings if not _is_method(key, rows))]
    if any(not run.config for run in runs) or (len(rows) > 1 and not settings):
        settings = ["run", *settings]
    if columns is None:
        needed = needed_keys({key: [row.get(key) for row in rows] for key in settings})
        first = [*needed, *(key for key in settings if key not in needed)][:MOST_SETTINGS]
        chosen = [key for key in settings if key in first]
        hidden = [key for key in settings if key not in first]
        told = [key for key in USUAL if key in figures]
        told = [key for key in told if FIGURES[key].better or _tells(rows, key)]
        names = [*chosen, *(["seeds"] if len(groups) < len(runs) else []), *told]
    else:
        names, hidden = list(columns), []
        _add_settings(rows, groups, names)
        _check(rows, names, figures, keys)
    shown_columns = {key: FIGURES.get(key, Column(heading(key))) for key in names}
    order = _order(rows, shown_columns, sort)
    return RunTable(
        [rows[place] for place in order],
        shown_columns,
        [groups[place] for place in order],
        [key for key in names if key not in FIGURES and key != "seeds"],
        hidden,
    )


def best_rows(table: RunTable) -> list[tuple[Mapping[str, Any], Sequence[Run], str]]:
    """The best row among those that can be compared, with its runs and the figure it is best by.

    In the order of the table. Rows that lack the figure that others of the same model and budget
    are ranked by, such as those of `prune`, are not compared.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    ranked: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for place, row in enumerate(table.rows):
        key = tuple(str(row[key]) for key in WITHIN)
        groups.setdefault(key, []).append(place)
        ranked.setdefault(key[:2], []).append(row)
    found = []
    for key, members in groups.items():
        figure = primary(table.rows[place] for place in members)
        if figure is None or figure != primary(ranked[key[:2]]):
            continue
        known = [place for place in members if table.rows[place].get(figure) is not None]
        best = min(known, key=lambda place: _mean(table.rows[place][figure]))
        found.append((table.rows[best], table.runs[best], figure))
    return found


def primary(rows: Any) -> str | None:
    """The figure that rows are ranked by; ``None`` if none of `PRIMARY` was measured."""
    rows = list(rows)
    return next((f for f in PRIMARY if any(row.get(f) is not None for row in rows)), None)


def protocol_of(run: Run) -> str:
    """How a run's samples were drawn and scored, in a line; empty if none were."""
    p = run.protocol
    if not p:
        return ""
    seeds = len(p.get("sampling_seeds", [0]))
    parts = [
        f"{p['num_samples']:,} samples" if "num_samples" in p else "",
        f"{seeds} sampling seeds" if seeds > 1 else "",
        str(p.get("sampler", "")),
        guidance_words(dict(p)) if "guidance" in p else "",
        f"features of {p['extractor']}" if p.get("extractor") else "",
        f"against {p['reference']}" if p.get("reference") else "",
    ]
    return ", ".join(part for part in parts if part)


def budget_of(run: Run) -> str:
    """What is left of the first model: ``14 of 28 blocks``, or a share of its parameters."""
    before, after = run.reference, run.result
    if not before or not after:
        return ""
    if before.get("depth") != after.get("depth"):
        return f"{after.get('depth')} of {before.get('depth')} blocks"
    share = after.get("parameters", 0) / max(1, before.get("parameters", 1))
    return f"{share:.0%} of the parameters" if 0 < share < 1 else "the whole model"


def _merged(runs: Sequence[Run], keys: Sequence[str]) -> list[list[Run]]:
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        identity: tuple[str, ...] = (str(run.folder),)
        if run.config:
            identity = (run.command, run.decision.get("method", ""), budget_of(run))
            identity += (protocol_of(run), *(repr(run.setting(k)) for k in keys if k not in SEEDS))
        groups.setdefault(identity, []).append(run)
    return list(groups.values())


def _row(group: Sequence[Run], keys: Sequence[str], below: Path) -> dict[str, Any]:
    first = group[0]
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    row: dict[str, Any] = {key: shown(first, key) for key in keys}
    row |= {"run": run_name(first, below) + more, "seeds": len(group)}
    row |= {"method": first.decision.get("method") or None}
    # The teacher of a run that was scored itself is what it compares with.
    row |= {
        "_model": str(first.setting("checkpoint") or "") if first.reference else "",
        "_budget": budget_of(first),
        "_protocol": protocol_of(first),
    }
    if len(group) == 1:
        return row | {key: value for key, value in for_table(first.result).items()}
    for figure in FIGURES:
        values = [run.result[figure] for run in group if run.result.get(figure) is not None]
        # What has no direction of quality, such as a depth, is alike by design.
        if len(values) > 1 and (FIGURES[figure].better or len(set(values)) > 1):
            row[figure] = (mean(values), stdev(values))
        elif values:
            row[figure] = values[0]
    return row


def _is_method(key: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a key says no more than the name of the method does."""
    if heading(key) != "pruner":
        return False
    pairs = {(row["method"], row.get(key)) for row in rows}
    return len(pairs) == len({method for method, _ in pairs})


def _tells(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether a figure without direction differs between rows."""
    return len({str(row.get(key)) for row in rows}) > 1


def _add_settings(
    rows: Sequence[dict[str, Any]], groups: Sequence[Sequence[Run]], names: Sequence[str]
) -> None:
    """Settings that were asked for, though they are the same in all runs."""
    for name in names:
        for row, group in zip(rows, groups, strict=True):
            value = group[0].setting(name)
            if name not in row and value is not None:
                row[name] = shown(group[0], name)


def _check(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    figures: Sequence[str],
    keys: Sequence[str],
) -> None:
    for name in names:
        if not any(row.get(name) is not None for row in rows):
            valid = ", ".join([*figures, *keys, "run", "method", "seeds"])
            raise InputError(
                f"columns: no run has {name!r}; valid: {valid}, and any key of the configuration"
            )


def _order(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column], sort: str | None
) -> list[int]:
    places = range(len(rows))
    if sort is not None:
        if sort not in columns:
            raise InputError(f"sort: there is no column {sort!r}; valid: {', '.join(columns)}")
        higher = columns[sort].better == "higher"
        return sorted(places, key=lambda place: _key(rows[place].get(sort), higher))
    return sorted(
        places,
        key=lambda place: (
            *(_natural(str(rows[place][key])) for key in WITHIN[:2]),
            _rank(rows[place]),
            _natural(str(rows[place][WITHIN[2]])),
            _key(rows[place].get(primary([rows[place]]) or ""), False),
        ),
    )


def _rank(row: Mapping[str, Any]) -> int:
    """Rows that were scored in full come first."""
    figure = primary([row])
    return len(PRIMARY) if figure is None else PRIMARY.index(figure)


def _mean(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) else value


def _key(value: Any, higher: bool) -> tuple[int, float, str]:
    """Numbers in order of quality, then texts, then what is missing."""
    value = _mean(value)
    if value is None or value != value:
        return 2, 0.0, ""
    if isinstance(value, int | float):
        return 0, -value if higher else value, ""
    return 1, 0.0, str(value)


def _natural(text: str) -> tuple[int, str]:
    """Texts that begin with a number by that number."""
    number = text.split(" ")[0].rstrip("%")
    return (int(number) if number.isdigit() else 0), text
