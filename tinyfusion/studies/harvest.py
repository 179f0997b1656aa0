"""What a study's record keeps of a run's folder: figures, curves and how a choice was learned.

Small enough for a text file that is committed: a curve has few points, and of the losses of many
random choices only quantiles are kept.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyfusion.files import read_json

COST_FILE = "cost.json"
"""What training cost, where a study counts that (`studies.learning_costs`)."""

CURVES = ("evaluate/fid", "evaluate/held_out_loss")
"""Figures over steps that are recorded."""

FIRST = ("train/features",)
"""Figures of which the first logged value is recorded, as a curve of one point."""

QUANTILES = 512
"""Of the losses of random choices; least and largest among them."""

TRACE_RECORDS = 40
"""Steps at which a learned choice is recorded."""

DIGITS = 6
"""Significant digits of figures in records."""


def results_of(folder: Path) -> dict[str, Any]:
    """The figures of a finished run, by the kind of file that holds them."""
    results: dict[str, Any] = {}
    for pattern, (key, read) in _FILES.items():
        for file in sorted(folder.glob(pattern)):
            content = rounded(read(file))
            results |= {key: content} if key else content
    return results


def curves_of(folder: Path) -> dict[str, list[list[float]]]:
    """Figures that were measured while training, ``[[step, value], ...]`` by phase and name."""
    curves: dict[str, list[list[float]]] = {}
    for file in sorted(folder.glob("*/log/version_*/metrics.csv")):
        phase = file.parts[-4]
        with open(file, encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                for name in CURVES + FIRST:
                    points = curves.setdefault(f"{phase}/{name}", [])
                    if row.get(name) and not (name in FIRST and points):
                        points.append([int(row["step"]), _short(float(row[name]))])
    return {name: points for name, points in curves.items() if points}


def rounded(value: Any) -> Any:
    """Plain data with numbers of `DIGITS` digits."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return _short(value) if isinstance(value, float) else value


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value


def _speed(file: Path) -> dict[str, Any]:
    """Speed-ups of cuts, without what all of them share."""
    content = read_json(file, "speeds")
    kept = ("label", "ratio", "speed_up", "speed_up_q1", "speed_up_q3", "parameters", "depth")
    series = {
        name: [{key: point[key] for key in kept if key in point} for point in points]
        for name, points in content["series"].items()
    }
    return {"settings": content["settings"], "series": series}


def _activations(file: Path) -> dict[str, Any]:
    """Hidden states of all blocks together, and the extremes of each block."""
    content = read_json(file, "activations")
    models = {}
    for name, model in content["models"].items():
        whole = {k: v for k, v in model["whole"].items() if isinstance(v, int | float | dict)}
        blocks = [{key: block[key] for key in ("min", "max", "std")} for block in model["blocks"]]
        models[name] = {"depth": model["depth"], "whole": whole, "blocks": blocks}
    return {"settings": content["settings"], "models": models}


def _losses(file: Path) -> dict[str, Any]:
    """How many candidates there were, and quantiles of their losses."""
    with open(file, encoding="utf-8", newline="") as handle:
        next(handle)  # which list it is; the names of the columns follow
        losses = np.array([float(row["loss"]) for row in csv.DictReader(handle)])
    finite = np.sort(losses[np.isfinite(losses)])
    quantiles = np.quantile(finite, np.linspace(0, 1, min(QUANTILES, len(finite))))
    return {
        "count": len(losses),
        "finite": len(finite),
        "std": float(finite.std()),
        "quantiles": quantiles.tolist(),
    }


def _trace(file: Path) -> list[Mapping[str, Any]]:
    """Some of the records of a decision while it was learned, the last among them."""
    records = read_json(file, "decision trace")
    stride = max(1, math.ceil(len(records) / TRACE_RECORDS))
    chosen = records[::-1][::stride][::-1]
    return [
        {"step": r["step"], "kept": r["kept"], "inclusion": [round(p, 3) for p in r["inclusion"]]}
        for r in chosen
    ]


_FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "metrics.json": ("", lambda file: read_json(file, "metrics")),
    f"*/{COST_FILE}": ("cost", lambda file: read_json(file, "cost")),
    "speed.json": ("speed", _speed),
    "activations.json": ("activations", _activations),
    "*/candidates.csv": ("losses", _losses),
    "*/decision_trace.json": ("trace", _trace),
}
"""By pattern: the key of a record's results, and how the file is read."""
