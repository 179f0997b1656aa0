"""Charts and pictures of the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyfusion.figures.grid import comparison_grid
from tinyfusion.report.charts import curve_charts, decimated, kept_chart, speed_chart
from tinyfusion.report.pictures import inline, opened, rows_of_grid
from tinyfusion.report.reading import read_run

MakeRun = Callable[..., Path]


def test_curves_keep_their_ends_and_their_number():
    points = [(step, float(step)) for step in range(5000)]
    found = decimated(points)
    assert len(found) == 200 and found[0] == points[0] and found[-1] == points[-1]
    assert decimated(points[:7]) == points[:7]


def test_charts_are_of_losses_and_fid_only():
    own = {"recover/train/loss": [(1, 1.0)], "recover/evaluate/fid": [(1, 9.0)], "a/grad": [(1, 1)]}
    assert list(curve_charts({"x": own}, {"x": "learned"})) == [
        "FID during recover",
        "training loss, recover",
    ]


@pytest.mark.parametrize(("count", "told"), [(12, "run"), (13, "method")])
def test_curves_of_many_runs_are_coloured_by_method(count: int, told: str):
    curves = {f"r{i}": {"recover/train/loss": [(1, 1.0 + i)]} for i in range(count)}
    (chart,) = curve_charts(curves, {run: run[1] for run in curves}).values()
    colour = chart["encoding"]["color"]
    assert colour["field"] == told and colour["legend"] is not None
    assert chart["encoding"]["detail"] == {"field": "run"}


def test_quality_over_speed_compares_only_what_was_scored_alike(make_run: MakeRun):
    runs = {n: read_run(make_run(n, fid=2.0, speed_up=1.0)) for n in "abc"}
    runs["c"] = replace(runs["c"], protocol={"num_samples": 7})
    chart = speed_chart(runs)
    assert chart is not None
    assert {entry["run"] for entry in chart["layer"][1]["data"]["values"]} == {"a", "b"}


def test_quality_over_speed_joins_what_no_other_beats(make_run: MakeRun):
    cases = {"a": (2.0, 1.0), "b": (3.0, 2.0), "c": (3.5, 1.5), "d": (6.0, 4.0)}
    runs = {n: read_run(make_run(n, fid=f, speed_up=s)) for n, (f, s) in cases.items()}
    chart = speed_chart(runs)
    assert chart is not None
    line, marks = chart["layer"]
    assert [entry["run"] for entry in line["data"]["values"]] == ["d", "b", "a"]
    assert len(marks["data"]["values"]) == 4
    assert speed_chart({"a": runs["a"]}) is None


def test_parameters_stand_for_speed_where_none_was_measured(make_run: MakeRun):
    runs = {str(keep): read_run(make_run(str(keep), fid=5.0 - keep, keep=keep)) for keep in (1, 2)}
    chart = speed_chart(runs)
    assert chart is not None
    assert "no speed measured" in chart["layer"][0]["encoding"]["x"]["title"]
    assert [entry["run"] for entry in chart["layer"][0]["data"]["values"]] == ["1", "2"]
    alike = {name: read_run(make_run(name, fid=fid)) for name, fid in (("x", 1.0), ("y", 2.0))}
    assert speed_chart(alike) is None  # one size, and no speed


def test_kept_blocks_are_squares(make_run: MakeRun):
    chart = kept_chart({"a": read_run(make_run("a", keep=3))})
    assert chart is not None
    states = [entry["state"] for entry in chart["data"]["values"]]
    assert states == ["kept"] * 3 + ["removed"]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_rows_are_cut_from_sheets(tmp_path: Path, count: int):
    draws = np.random.default_rng(0).integers(0, 240, (count, 10, 1, 8, 8), np.uint8)
    names = [f"row {place}" for place in range(count)]
    sheet = opened(comparison_grid(dict(zip(names, draws, strict=True)), tmp_path / "s.png"))
    rows = rows_of_grid(sheet, count)
    assert rows is not None and len({row.size for row in rows}) == 1
    for row, drawn in zip(rows, draws, strict=True):
        scale = row.height // 8
        first = np.asarray(row.convert("L"))[scale // 2 :: scale, scale // 2 :: scale][:, :8]
        assert np.array_equal(first, drawn[0, 0])
    assert rows_of_grid(sheet, count + 1) is None


def test_pictures_shrink_to_what_they_may_take():
    draw = np.random.default_rng(0).integers(0, 255, (100, 1000, 3), np.uint8)
    pictures = {str(i): Image.fromarray(draw) for i in range(4)}
    large, small = inline(pictures, 10**8), inline(pictures, 80_000)
    assert {entry.width for entry in large.values()} == {960}
    assert len(small) == 4 and {entry.width for entry in small.values()} < {640, 440, 300}
    assert 0 < len(inline(pictures, 10_000)) < 4
    assert sum(len(entry.address) for entry in small.values()) <= 80_000
