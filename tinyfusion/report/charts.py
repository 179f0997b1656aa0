"""Charts of runs as Vega-Lite specifications; nothing is drawn here.

Specification: https://vega.github.io/vega-lite/docs/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tinyfusion.report.columns import FIGURES
from tinyfusion.report.runs import Points, Run
from tinyfusion.report.tables import budget_of, primary, protocol_of

MOST_POINTS = 200
"""Per curve."""

MOST_IN_LEGEND = 12
"""Runs that a legend names; of more, colours are methods, and the pointer tells the run."""

Spec = dict[str, Any]


def decimated(points: Points, most: int = MOST_POINTS) -> Points:
    """At most so many points of a curve, evenly spread, with its first and its last."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def curve_charts(
    curves: Mapping[str, Mapping[str, Points]], methods: Mapping[str, str]
) -> dict[str, Spec]:
    """A chart for each loss and each FID that was recorded over steps, by its title.

    Args:
        curves: by run, then by phase and name, see `Run.curves`.
        methods: the pruner's name by run.
    """
    titles: dict[str, str] = {}
    for own in curves.values():
        for name in own:
            phase, _, figure = name.partition("/")
            if figure == "train/loss":
                titles[name] = f"training loss, {phase}"
            elif figure.endswith("/fid"):
                titles[name] = f"FID during {phase}"
            elif figure.endswith(("held_out_loss", "held_out/loss", "val/loss")):
                titles[name] = f"held-out loss, {phase}"
    charts = {}
    for name, title in sorted(titles.items(), key=lambda pair: ("loss" in pair[1], pair[1])):
        values = [
            {"run": run, "method": methods[run], "step": step, "value": _short(value)}
            for run, own in curves.items()
            for step, value in decimated(own.get(name, []))
        ]
        charts[title] = _lines(values, "FID" if title.startswith("FID") else "loss")
    return charts


def speed_chart(runs: Mapping[str, Run]) -> Spec | None:
    """Quality over measured speed, with the runs that no other beats in both.

    Where no speed was measured, parameters stand for it, and the axis says so. Runs that were
    scored in another way than most are left out, as their figures can't be compared.

    Args:
        runs: by name.

    Returns:
        The chart; ``None`` if fewer than two runs have both figures, or all are of one size and
        no speed was measured.
    """
    figure = primary(run.result for run in runs.values())
    if figure is None:
        return None
    ways = Counter(protocol_of(run) for run in runs.values() if figure in run.result)
    usual = ways.most_common(1)[0][0]
    runs = {name: run for name, run in runs.items() if protocol_of(run) == usual}
    measured = any("speed_up" in run.result for run in runs.values())
    across = "speed_up" if measured else "parameters"
    values = [
        {
            "run": name,
            "x": run.result[across],
            "y": _short(run.result[figure]),
            "method": run.decision.get("method") or run.command,
            "left": budget_of(run),
        }
        for name, run in runs.items()
        if run.result.get(across) is not None and run.result.get(figure) is not None
    ]
    sizes = {value["x"] for value in values}
    if len(values) < 2 or (len(sizes) == 1 and not measured):
        return None
    title = (
        "speed-up over the first model, measured" if measured else "parameters (no speed measured)"
    )
    front = _front(values, higher_x=measured)
    y = {
        "field": "y",
        "type": "quantitative",
        "title": f"{FIGURES[figure].header} (lower is better)",
        "scale": _scale(values),
    }
    x = {"field": "x", "type": "quantitative", "title": title, "scale": {"zero": False}}
    if not measured:
        x["axis"] = {"format": "~s"}
    return _framed(
        {
            "layer": [
                {
                    "data": {"values": front},
                    "mark": {"type": "line", "color": "#888", "strokeDash": [4, 3]},
                    "encoding": {"x": x, "y": y},
                },
                {
                    "data": {"values": values},
                    "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.9},
                    "encoding": {
                        "x": x,
                        "y": y,
                        "color": {"field": "method", "type": "nominal", "title": None},
                        "shape": {"field": "method", "type": "nominal", "title": None},
                        "tooltip": [
                            {"field": "run"},
                            {"field": "method"},
                            {"field": "left", "title": "what is left"},
                            {"field": "x", "title": across.replace("_", "-"), "format": ".3~s"},
                            {"field": "y", "title": FIGURES[figure].header, "format": ".4~g"},
                        ],
                    },
                },
            ]
        }
    )


def kept_chart(runs: Mapping[str, Run]) -> Spec | None:
    """Which blocks each run kept: a row a run, a square a block.

    Args:
        runs: by name.

    Returns:
        The chart; ``None`` if no run cut depth.
    """
    values = [
        {"run": name, "block": block, "state": "kept" if block in (run.kept or ()) else "removed"}
        for name, run in runs.items()
        if run.kept is not None
        for block in range(int(run.decision.get("source_depth") or max(run.kept, default=-1) + 1))
    ]
    if not values:
        return None
    rows = len({entry["run"] for entry in values})
    return _framed(
        {
            "data": {"values": values},
            "mark": {"type": "rect", "stroke": "white", "strokeWidth": 1},
            "encoding": {
                "x": {
                    "field": "block",
                    "type": "ordinal",
                    "title": "block of the first model",
                    "axis": {"labelAngle": 0, "labelOverlap": True, "grid": False},
                },
                "y": {
                    "field": "run",
                    "type": "nominal",
                    "title": None,
                    "sort": None,
                    "axis": {"grid": False},
                },
                "color": {
                    "field": "state",
                    "type": "nominal",
                    "title": None,
                    "scale": {"domain": ["kept", "removed"], "range": ["#2a6fb0", "#dcdcdc"]},
                },
                "tooltip": [{"field": "run"}, {"field": "block"}, {"field": "state"}],
            },
            "height": max(60, 18 * rows),
        }
    )


def _lines(values: Sequence[Mapping[str, Any]], title: str) -> Spec:
    runs = len({entry["run"] for entry in values})
    methods = len({entry["method"] for entry in values})
    told = "run" if runs <= MOST_IN_LEGEND or methods == 1 else "method"
    kinds = methods if told == "method" else runs
    return _framed(
        {
            "data": {"values": list(values)},
            "params": [
                {
                    "name": "over",
                    "select": {
                        "type": "point",
                        "fields": ["run"],
                        "on": "pointerover",
                    },
                }
            ],
            "mark": {"type": "line", "point": {"size": 14}, "strokeWidth": 1.5},
            "encoding": {
                "x": {"field": "step", "type": "quantitative", "title": "step"},
                "y": {
                    "field": "value",
                    "type": "quantitative",
                    "title": title,
                    "scale": _scale(values, "value"),
                },
                "color": {
                    "field": told,
                    "type": "nominal",
                    "title": None,
                    "sort": None,
                    "scale": {"scheme": "tableau10" if kinds <= 10 else "tableau20"},
                    "legend": {"labelLimit": 330} if kinds <= MOST_IN_LEGEND else None,
                },
                "detail": {"field": "run"},
                "opacity": {"condition": {"param": "over", "value": 1}, "value": 0.25},
                "tooltip": [
                    {"field": "run"},
                    {"field": "step"},
                    {"field": "value", "title": title, "format": ".4~g"},
                ],
            },
        }
    )


def _framed(spec: Spec) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": 280,
        "background": "transparent",
        "config": {
            "legend": {"orient": "bottom", "symbolLimit": 50},
            "view": {"stroke": None},
            "axis": {"grid": True, "gridOpacity": 0.3},
        },
        **spec,
    }


def _front(values: Sequence[Mapping[str, Any]], higher_x: bool) -> list[Mapping[str, Any]]:
    """The values that no other beats in both, from the fastest on."""
    front: list[Mapping[str, Any]] = []
    for entry in sorted(values, key=lambda v: (-v["x"] if higher_x else v["x"], v["y"])):
        if not front or entry["y"] < front[-1]["y"]:
            front.append(entry)
    return front


def _scale(values: Sequence[Mapping[str, Any]], key: str = "y") -> Spec:
    """Logarithmic where values span more than a decade."""
    numbers = [entry[key] for entry in values]
    log = min(numbers) > 0 and max(numbers) > 10 * min(numbers)
    return {"type": "log", "nice": False, "padding": 12} if log else {"zero": False}


def _short(value: float) -> float:
    return float(f"{value:.5g}")
