"""One self-contained HTML page about some runs: it opens from disk, without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import tinyfusion.assets
from tinyfusion.figures.table import MISSING, Column, Mark, Table, marks, shown_cells
from tinyfusion.report.charts import Spec, curve_charts, kept_chart, speed_chart
from tinyfusion.report.columns import FIGURES
from tinyfusion.report.differences import flat
from tinyfusion.report.labels import common_folder, labels_of, run_name
from tinyfusion.report.paper import PaperTable
from tinyfusion.report.runs import BENCHMARK_FILE, Run
from tinyfusion.report.sheets import decisions, samples
from tinyfusion.report.tables import (
    WITHIN,
    RunTable,
    best_rows,
    protocol_of,
    scored,
    table_of,
)
from tinyfusion.text import readable_duration
from tinyfusion.tracking.keys import METRICS_FILE

LIBRARIES = ("tabulator.min.js", "vega.min.js", "vega-lite.min.js", "vega-embed.min.js")
FILES = (
    *("table.md", METRICS_FILE, BENCHMARK_FILE, "activations.json", "decision.json", "config.yaml"),
    *("run.log", "samples.png", "speed.png", "activations.png"),
)
"""Files of a run that the page links to, as far as they are there."""

_HERE = Path(__file__).parent
_WEB = Path(tinyfusion.assets.__file__).parent / "web"


def page(
    runs: Sequence[Run],
    title: str,
    folder: Path | str,
    table: Table | None = None,
    paper: PaperTable | None = None,
    columns: Sequence[str] | None = None,
    sort: str | None = None,
) -> str:
    """The page as HTML.

    Args:
        runs: what it tells of; those that are not finished are listed.
        title: its heading.
        folder: where it will be written, which its links are relative to.
        table: another table to show, such as a study's, with the paper's
            figures beside those measured.
        paper: a table of the paper to show as it was printed.
        columns: see `table_of`.
        sort: see `table_of`.

    Raises:
        InputError: a file of a run can't be read, or see `table_of`.
    """
    found, each = scored(runs), table_of(runs, columns, sort, merge=False)
    # In the order of the table, so that numbers and colours agree.
    ordered = [group[0] for group in each.runs]
    names = labels_of(ordered, [*each.settings, *each.hidden])
    labelled = dict(zip(names, ordered, strict=True))
    curves = {name: run.curves() for name, run in labelled.items()}
    shared, own = _settings(ordered)
    charts: dict[str, Spec] = {}
    for key, spec in (("speed", speed_chart(labelled)), ("kept", kept_chart(labelled))):
        charts |= {} if spec is None else {key: spec}
    curved = curve_charts(
        {name: own for name, own in curves.items() if own},
        {name: str(run.decision.get("method", "")) for name, run in labelled.items()},
    )
    charts |= {f"curve{place}": spec for place, spec in enumerate(curved.values())}
    data = {
        **_tabulated(each, names),
        "charts": charts,
        "shared": shared,
        "own": own,
        "names": names,
    }
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=title,
        counted=_counted(runs),
        unfinished=[run for run in runs if run.state != "finished"],
        unscored=[
            {"run": run, "files": _links(run, Path(folder))}
            for run in runs
            if run.state == "finished" and not run.result
        ],
        best=_headline(table_of(runs)),
        protocols=list(dict.fromkeys(filter(None, map(protocol_of, found)))),
        versions=sorted({_versions(run) for run in ordered} - {""}),
        samples=samples(labelled),
        decisions=decisions(labelled),
        charts=charts,
        curves=list(curved),
        runs=[
            {"name": name, "run": run, "files": _links(run, Path(folder)), "time": _time(run)}
            for name, run in labelled.items()
        ],
        where=lambda run: {"name": run_name(run, common_folder(runs)), "reason": run.reason},
        shared={key: _plain(value) for key, value in shared.items()},
        table=None if table is None else _static(table),
        paper=paper,
        printed=None if paper is None else _printed(paper),
        data=_script_json(data),
        css=_raw(_WEB / "tabulator.min.css") + _raw(_HERE / "page.css"),
        libraries=[_raw(_WEB / name) for name in LIBRARIES],
        script=_raw(_HERE / "page.js"),
    )


def _tabulated(table: RunTable, names: Sequence[str]) -> dict[str, Any]:
    """Rows and columns for the table that can be sorted and filtered.

    A cell's value is what it is sorted by; its text and its mark stand beside it.
    """
    texts = shown_cells(table.rows, table.columns)
    signs = marks(table.rows, table.columns, WITHIN)
    rows: list[dict[str, Any]] = []
    fields = {key: f"c{place}" for place, key in enumerate(table.columns)}
    for place, row in enumerate(table.rows):
        line: dict[str, Any] = {"id": place, "name": names[place], "text": {}, "mark": {}}
        for key, text in zip(table.columns, texts[place], strict=True):
            value, field = row.get(key), fields[key]
            line[field] = value[0] if isinstance(value, tuple | list) else value
            line["text"][field] = text
            if signs[place][key]:
                line["mark"][field] = signs[place][key]
        rows.append(line)
    columns = []
    for key, column in table.columns.items():
        values = [row[fields[key]] for row in rows if row[fields[key]] is not None]
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        entry = {"title": column.head, "field": fields[key], "numeric": numeric}
        columns.append(entry | {"better": column.better})
    return {"rows": rows, "columns": columns}


def _headline(table: RunTable) -> list[dict[str, Any]]:
    """What the page says first: the best row of each model and budget, in plain words."""
    found = []
    several = max((len(group) for group in table.runs), default=1) > 1
    firsts = [group[0] for group in table.runs]
    names = labels_of(firsts, [*table.settings, *table.hidden])
    labels = {id(run): name for run, name in zip(firsts, names, strict=True)}
    for row, runs, figure in best_rows(table):
        column = FIGURES[figure]
        reference = runs[0].reference.get(figure)
        rivals = sum(all(other[key] == row[key] for key in WITHIN) for other in table.rows)
        found.append(
            {
                "budget": ", ".join(filter(None, (row["_model"], row["_budget"]))),
                "figure": column.header,
                "value": shown_cells([row], {figure: column})[0][0],
                "label": labels[id(runs[0])],
                "seeds": f"{len(runs)} seed{'s' if len(runs) > 1 else ''}" if several else "",
                "spread": len(runs) > 1,
                "rivals": rivals,
                "reference": None if reference is None else format(reference, column.format),
                "speed_up": shown_cells([row], {"speed_up": Column("", ".2f")})[0][0],
            }
        )
    return found


def _settings(runs: Sequence[Run]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all configurations share, and what is each one's own."""
    configs = [flat(run.config) for run in runs]
    first = configs[0] if configs else {}
    shared = {
        key: value
        for key, value in first.items()
        if all(key in config and config[key] == value for config in configs)
    }
    own = [{key: _plain(c[key]) for key in c if key not in shared} for c in configs]
    return {key: _plain(value) for key, value in shared.items()}, own


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _counted(runs: Sequence[Run]) -> str:
    """How many runs of which command and state: ``4 runs (run), 1 of them failed``."""
    commands = ", ".join(sorted({run.command for run in runs} - {""}))
    text = f"{len(runs)} run{'s' if len(runs) != 1 else ''}"
    text += f" of tinyfusion {commands}" if commands else ""
    for state in ("failed", "unfinished"):
        count = sum(run.state == state for run in runs)
        text += f", {count} {state}" if count else ""
    return text


def _links(run: Run, folder: Path) -> list[tuple[str, str]]:
    """Names and addresses of a run's files, relative to the page's folder."""
    base = os.path.relpath(run.folder.absolute(), folder.absolute())
    names = [name for name in FILES if (run.folder / name).is_file()]
    return [("folder", quote(base)), *((name, quote(f"{base}/{name}")) for name in names)]


def _time(run: Run) -> str:
    return "" if run.seconds is None else readable_duration(run.seconds)


def _versions(run: Run) -> str:
    names = [f"tinyfusion {run.version}"] if run.version else []
    return ", ".join([*names, *(f"{name} {version}" for name, version in run.libraries.items())])


def _static(table: Table) -> dict[str, Any]:
    """A table that is shown as it is."""
    cells: list[list[tuple[str, Mark]]] = [
        [(text, sign) for text, sign in zip(line, signs.values(), strict=True)]
        for line, signs in zip(
            shown_cells(table.rows, table.columns),
            marks(table.rows, table.columns, table.within),
            strict=True,
        )
    ]
    return {"heads": [column.head for column in table.columns.values()], "rows": cells}


def _printed(paper: PaperTable) -> dict[str, Any]:
    columns = {entry.name: Column(entry.name, "", entry.better) for entry in paper.columns}
    rows = [{key: _cell(value) for key, value in row.items()} for row in paper.rows]
    return _static(Table(rows, columns))


def _cell(value: Any) -> Any:
    return MISSING if value is None else value


def _script_json(value: Any) -> Markup:
    """JSON that can stand in a ``<script>`` element."""
    text = json.dumps(value, separators=(",", ":"), default=str, allow_nan=True)
    return Markup(text.replace("NaN", "null").replace("<", "\\u003c"))


def _raw(file: Path) -> Markup:
    return Markup(file.read_text(encoding="utf-8"))
