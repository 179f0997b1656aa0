"""One self-contained HTML page about some runs: it opens from disk, without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL.Image import Image

import tinyfusion.assets
from tinyfusion.figures.table import MISSING, Column, Mark, Rows, marks, shown_cells
from tinyfusion.report.charts import Spec, curve_charts, kept_chart, speed_chart
from tinyfusion.report.columns import FIGURES
from tinyfusion.report.differences import flat
from tinyfusion.report.paper import PaperTable
from tinyfusion.report.pictures import Inline, inline, opened, rows_of_grid
from tinyfusion.report.runs import METRICS_FILE, REFERENCE, Run
from tinyfusion.report.tables import (
    WITHIN,
    RunTable,
    best_rows,
    common_folder,
    labels_of,
    protocol_of,
    run_name,
    scored,
    table_of,
)
from tinyfusion.text import readable_duration

PICTURE_BYTES = 2_400_000
"""That all pictures of a page may take; half of it for samples."""

LIBRARIES = ("tabulator.min.js", "vega.min.js", "vega-lite.min.js", "vega-embed.min.js")
FILES = ("table.md", METRICS_FILE, "decision.json", "config.yaml", "run.log", "samples.png")
"""Files of a run that the page links to, as far as they are there."""

_HERE = Path(__file__).parent
_WEB = Path(tinyfusion.assets.__file__).parent / "web"


def page(
    runs: Sequence[Run],
    title: str,
    folder: Path | str,
    table: tuple[Rows, Mapping[str, Column]] | None = None,
    paper: PaperTable | None = None,
    columns: Sequence[str] | None = None,
    sort: str | None = None,
) -> str:
    """The page as HTML.

    Args:
        runs: what it tells of; those that are not finished are listed.
        title: its heading.
        folder: where it will be written, which its links are relative to.
        table: rows and columns of another table to show, such as a study's, with the paper's
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
    names = labels_of(ordered, each.settings)
    labelled = dict(zip(names, ordered, strict=True))
    curves = {name: run.curves() for name, run in labelled.items()}
    shared, own = _settings(ordered)
    charts: dict[str, Spec] = {}
    for key, spec in (("speed", speed_chart(labelled)), ("kept", kept_chart(labelled))):
        charts |= {} if spec is None else {key: spec}
    curved = curve_charts({name: own for name, own in curves.items() if own})
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
        unscored=[run for run in runs if run.state == "finished" and not run.result],
        best=_headline(table_of(runs)),
        protocols=list(dict.fromkeys(filter(None, map(protocol_of, found)))),
        versions=sorted({_versions(run) for run in ordered} - {""}),
        samples=_samples(labelled),
        decisions=_decisions(labelled),
        charts=charts,
        curves=list(curved),
        runs=[
            {"name": name, "run": run, "files": _links(run, Path(folder)), "time": _time(run)}
            for name, run in labelled.items()
        ],
        where=lambda run: {"name": run_name(run, common_folder(runs)), "reason": run.reason},
        shared={key: _plain(value) for key, value in shared.items()},
        table=None if table is None else _static(*table),
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
    for row, runs, figure in best_rows(table):
        column = FIGURES[figure]
        reference = runs[0].reference.get(figure)
        label = labels_of([runs[0]], table.settings)[0]
        rivals = sum(all(other[key] == row[key] for key in WITHIN) for other in table.rows)
        found.append(
            {
                "budget": ", ".join(filter(None, (row["_model"], row["_budget"]))),
                "figure": column.header,
                "value": shown_cells([row], {figure: column})[0][0],
                "label": label,
                "seeds": len(runs),
                "rivals": rivals,
                "reference": None if reference is None else format(reference, column.format),
                "speed_up": shown_cells([row], {"speed_up": Column("", ".2f")})[0][0],
            }
        )
    return found


def _samples(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Sheets of samples in groups that share their noise: one row of the teacher, one a run."""
    groups: dict[tuple[Any, ...], dict[str, Image]] = {}
    for name, run in runs.items():
        file = run.picture("samples.png")
        if file is None:
            continue
        sheet = opened(file)
        drawn = [model for model in run.models if not model.startswith("recovered (")]
        rows = rows_of_grid(sheet, len(drawn)) if len(drawn) > 1 else None
        # The seed, the process and the sampler make the noise.
        key = (
            run.setting("checkpoint"), run.setting("seed"), protocol_of(run), rows is None,
            None if rows is None else rows[0].size,
        )  # fmt: skip
        pictures = groups.setdefault(key, {})
        if rows is None:
            pictures[name] = sheet
        else:
            if drawn[0] == REFERENCE:
                pictures.setdefault("", rows[0])
            pictures[name] = rows[-1]
    flat = {
        (place, name): picture
        for place, pictures in enumerate(groups.values())
        for name, picture in pictures.items()
    }
    made = _inline(flat, PICTURE_BYTES // 2)
    found = []
    for place, (key, pictures) in enumerate(groups.items()):
        shown = [(name, made.get((place, name))) for name in pictures]
        found.append({"about": f"{key[0]}, seed {key[1]}", "rows": shown})
    return found


def _decisions(runs: Mapping[str, Run]) -> list[tuple[str, Inline | None]]:
    files = {name: run.picture("decision.png") for name, run in runs.items()}
    pictures = {name: opened(file) for name, file in files.items() if file is not None}
    made = _inline(pictures, PICTURE_BYTES // 2)
    return [(name, made.get(name)) for name in pictures]


def _inline(pictures: Mapping[Any, Image], budget: int) -> dict[Any, Inline]:
    by_text = {str(place): picture for place, picture in enumerate(pictures.values())}
    made = inline(by_text, budget)
    return {key: made[str(p)] for p, key in enumerate(pictures) if str(p) in made}


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


def _static(rows: Rows, columns: Mapping[str, Column]) -> dict[str, Any]:
    """A table that is shown as it is."""
    cells: list[list[tuple[str, Mark]]] = [
        [(text, sign) for text, sign in zip(line, signs.values(), strict=True)]
        for line, signs in zip(
            shown_cells(rows, columns), marks(rows, columns), strict=True
        )
    ]  # fmt: skip
    return {"heads": [column.head for column in columns.values()], "rows": cells}


def _printed(paper: PaperTable) -> dict[str, Any]:
    columns = {entry.name: Column(entry.name, "", entry.better) for entry in paper.columns}
    return _static(
        [{key: _cell(value) for key, value in row.items()} for row in paper.rows], columns
    )


def _cell(value: Any) -> Any:
    return MISSING if value is None else value


def _script_json(value: Any) -> Markup:
    """JSON that can stand in a ``<script>`` element."""
    text = json.dumps(value, separators=(",", ":"), default=str, allow_nan=True)
    return Markup(text.replace("NaN", "null").replace("<", "\\u003c"))


def _raw(file: Path) -> Markup:
    return Markup(file.read_text(encoding="utf-8"))
