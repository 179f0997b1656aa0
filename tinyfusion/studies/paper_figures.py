"""The paper's figures from a study's records: each is drawn, and its numbers are a table.

Each raises `InputError` where no run is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tinyfusion.errors import InputError
from tinyfusion.figures.activations import massive_activations, printed_activations
from tinyfusion.figures.curves import curves
from tinyfusion.figures.decision import DecisionRecord, decision_panels
from tinyfusion.figures.density import loss_density
from tinyfusion.figures.speed import printed_speed, speed_by_ratio
from tinyfusion.figures.table import Column, Table
from tinyfusion.files import read_json, write_bytes
from tinyfusion.report.paper import paper_figure
from tinyfusion.studies.outcome import Outcome, spread
from tinyfusion.studies.works import slug
from tinyfusion.studies.written import Report

ACTIVATIONS_FILE, SHEET = "activations.json", "samples.png"
"""Files of runs that pictures are made of."""

SERIES = {"depth": "depth pruning", "width": "width pruning"}


def figure_4(outcome: Outcome, folder: Path) -> Report:
    """Speed-up over the share of parameters removed, by depth and by width."""
    parts: list[str | Table] = []
    printed = paper_figure(4)["series"]
    for _, record in outcome.complete():
        speed = record.results["speed"]
        named = {SERIES.get(name, name): points for name, points in speed["series"].items()}
        beside = printed_speed(paper_figure(4))
        speed_by_ratio(named, folder / f"{outcome.study.name}.png", printed=beside)
        settings = ", ".join(f"{key} {value}" for key, value in speed["settings"].items())
        parts.append(f"Measured with {settings}.\n")
        for series in printed:
            points = named.get(series["name"], [])
            rows, columns = _speed_table(points, series["points"])
            name = slug(series["name"]).lower()
            parts += [f"## {series['name']}\n", Table(rows, columns, name)]
    return Report(parts, [f"{outcome.study.name}.png"])


def _speed_table(
    points: list[dict[str, Any]], printed: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Column]]:
    """Measured speed-ups by the share removed, beside the printed ones of the same number."""
    rows = []
    for number in range(max(len(points), len(printed))):
        row: dict[str, Any] = {}
        if number < len(points):
            point = points[number]
            row |= {"cut": point.get("label"), "removed": 100 * point["ratio"]}
            row |= {"linear": 1 / (1 - point["ratio"]), "speed_up": point["speed_up"]}
        if number < len(printed):
            row["paper"] = printed[number]["speed_up"]
        rows.append(row)
    columns = {
        "cut": Column("what stays"),
        "removed": Column("parameters removed, %", ".1f"),
        "linear": Column("linear", ".2f"),
        "speed_up": Column("speed-up ↑", ".2f"),
        "paper": Column("paper: speed-up ↑", ".2f"),
    }
    return rows, columns


def figure_5(outcome: Outcome, folder: Path) -> Report:
    """Density of the losses of many random choices, with methods marked."""
    parts: list[str | Table] = []
    name = f"{outcome.study.name}.png"
    for _, record in outcome.complete():
        losses = record.results["losses"]
        marks = record.decision["scores"].get("marks", {})
        quantiles = losses["quantiles"]
        drawn = as_many(quantiles, losses["finite"])
        loss_density(drawn, folder / name, {key: mark["loss"] for key, mark in marks.items()})
        paper = paper_figure(5)
        printed = {mark["method"].lower(): mark for mark in paper["marked_methods"]}
        rows: list[dict[str, Any]] = [
            {"of": "candidates", "here": losses["count"], "paper": paper["statistics"]["n"]},
            {"of": "least loss", "here": quantiles[0], "paper": paper["statistics"]["min"]},
            {"of": "median loss", "here": median(quantiles)},
            {"of": "largest loss", "here": quantiles[-1], "paper": paper["statistics"]["max"]},
            {
                "of": "standard deviation",
                "here": losses["std"],
                "paper": paper["statistics"]["std"],
            },
        ]
        for key, mark in marks.items():
            found = printed.get(_PRINTED.get(key, key), {})
            row = {"of": key, "here": mark["loss"], "below": mark["percentile"]}
            rows.append(row | {"paper": found.get("calibration_loss")})
        columns = {
            "of": Column("loss of"),
            "here": Column("here", ",.4g"),
            "below": Column("random choices below, %", ".2f"),
            "paper": Column("paper", ",.4g"),
        }
        parts.append(Table(rows, columns))
    return Report(parts, [name])


def as_many(quantiles: Sequence[float], count: int) -> list[float]:
    """As many values as there were, spread evenly between neighbouring quantiles.

    Each end stands for one value of many; drawn as one of the quantiles, it would be a peak there.

    Args:
        quantiles: at equal distances, the least and the largest value among them.
        count: number of values that they were taken of.
    """
    given, wanted = np.linspace(0, 1, len(quantiles)), np.linspace(0, 1, count)
    return np.interp(wanted, given, quantiles).tolist()


_PRINTED = {"flux_lite": "flux-lite", "learned": "learnable"}


def figure_8(outcome: Outcome, folder: Path) -> Report:
    """Extreme hidden states of teacher and student, beside the paper's."""
    rows: list[dict[str, Any]] = []
    for cell, record in outcome.complete():
        for model, found in record.results["activations"]["models"].items():
            ends = {key: found["whole"][key] for key in _ENDS}
            rows.append({"model": f"{cell.row.name}: {model}", "depth": found["depth"]} | ends)
    for printed in paper_figure(8)["rows"]:
        rows.append({"model": f"paper: {printed['model']}"} | {k: printed[k] for k in _ENDS})
    columns = {
        "model": Column("model"),
        "depth": Column("blocks"),
        **{key: Column(key, ",.2f") for key in _ENDS},
    }
    beside = printed_activations(paper_figure(8))

    def draw(run: Path, path: Path) -> None:
        found = read_json(run / ACTIVATIONS_FILE, "activations")
        massive_activations(found["models"], found["edges"], path, printed=beside)

    pictures = _by_row(outcome, folder, ACTIVATIONS_FILE, draw)
    return Report([Table(rows, columns)], pictures)


_ENDS = ("max", "min", "std")


def dynamics(outcome: Outcome, folder: Path) -> Report:
    """How choices were learned, a panel for each row's first seed."""
    traces: dict[str, list[DecisionRecord]] = {}
    final: list[str] = []
    for row in outcome.study.rows:
        for _, record in outcome.of(row)[:1]:
            if record is None or "trace" not in record.results:
                continue
            traces[row.name] = [
                DecisionRecord(r["step"], tuple(r["kept"]), tuple(r["inclusion"]))
                for r in record.results["trace"]
            ]
            kept = " ".join(map(str, record.decision["kept"]))
            final.append(f"- {row.name}: {kept}")
    if not traces:
        raise InputError(f"study {outcome.study.name} has no complete run yet")
    name = f"{outcome.study.name}.png"
    decision_panels(traces, folder / name)
    return Report(["Blocks that stay:\n", *final, ""], [name])


def figure_14(outcome: Outcome, folder: Path) -> Report:
    """FID over the steps of several recoveries."""
    named: dict[str, list[list[tuple[float, float]]]] = {}
    for row in outcome.study.rows:
        for _, record in outcome.of(row):
            if record is not None and "recover/evaluate/fid" in record.curves:
                points = [(step, value) for step, value in record.curves["recover/evaluate/fid"]]
                named.setdefault(row.name, []).append(points)
    name = f"{outcome.study.name}.png"
    curves(named, folder / name, "FID, lower is better ↓")
    steps = sorted({int(step) for own in named.values() for curve in own for step, _ in curve})
    rows = []
    for step in steps:
        by_row = {
            label: spread([value for curve in own for at, value in curve if at == step])
            for label, own in named.items()
        }
        rows.append({"step": step, **by_row})
    columns = {"step": Column("step", ",d")} | {
        label: Column(f"FID, {label} ↓", ".3f") for label in named
    }
    return Report([Table(rows, columns)], [name])


def sheets(outcome: Outcome, folder: Path) -> Report:
    """Sheets of samples, of the runs whose folders are here."""

    def copy(run: Path, path: Path) -> None:
        write_bytes(path, (run / SHEET).read_bytes())

    pictures = _by_row(outcome, folder, SHEET, copy)
    text = "Rows: models, from the same noise; columns: classes.\n"
    return Report([text], pictures)


def _by_row(
    outcome: Outcome, folder: Path, needed: str, make: Callable[[Path, Path], object]
) -> list[str]:
    """Names of the rows' own pictures in a folder, made of the runs whose folders are here.

    Args:
        outcome: the study and its records.
        folder: where the pictures go; those that are there already stay.
        needed: the file of a run that its picture is made of.
        make: called with a run's folder and the picture's path.
    """
    names = []
    for cell in outcome.cells:
        name = f"{outcome.study.name}_{slug(cell.row.name)}.png".lower()
        place = outcome.folders.get(cell.work)
        if place is not None and (place / needed).is_file():
            make(place, folder / name)
        if (folder / name).is_file():
            names.append(name)
    return names
