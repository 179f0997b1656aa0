"""The comparison of the learned choice with criteria over cells."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinyfusion as tf
from tinyfusion.errors import InputError
from tinyfusion.metrics.speed import macs
from tinyfusion.studies.budgets import (
    EQUAL_MACS,
    METHODS,
    REPORTED,
    UNITS,
    Cell,
    comparisons,
    log_ratios,
    mean_ranks,
    picture,
    plan,
    report,
    table,
)

FIGURES = ("fid", "held_out_loss", "teacher_distance")


def scores(**by_method: list[list[float]]):
    """The same value for all figures: per method, per cell, per seed."""
    return {
        (f"c{cell}", method.replace("_", " "), seed): dict.fromkeys(FIGURES, value)
        for method, cells in by_method.items()
        for cell, seeds in enumerate(cells)
        for seed, value in enumerate(seeds)
    }


def test_every_cell_has_every_method_and_decisions_come_first(tmp_path: Path) -> None:
    jobs = plan(tmp_path, [0, 1])
    runs = [job for job in jobs if job.command == "run"]
    assert len(runs) == len(REPORTED) * len(METHODS) * 2
    places = {job.folder: number for number, job in enumerate(jobs)}
    assert all(places[job.decided] < places[job.folder] for job in runs)
    firsts = {job.decided for job in runs if job.pruner == "first"}
    assert len(firsts) == len(REPORTED), "one decision for both seeds"
    learned = next(job for job in jobs if job.command == "prune")
    assert learned.overrides == ("checkpoint=digits", "pruner=learned", "keep=5", "seed=0")
    twelve = Cell("digits", "keep=12")
    (only,) = plan(tmp_path, [10], [twelve], {"learned": ("pruner=learned",)})[1:]
    assert (twelve.name, only.folder.name) == ("digits 12", "digits_12__learned__seed10")
    equal = plan(tmp_path, [0], EQUAL_MACS, UNITS)
    assert len(equal) == 2 * len(EQUAL_MACS) * len(UNITS)
    budgets = {(job.pruner, job.overrides[-2]) for job in equal if job.command == "prune"}
    whole = tf.load("digits")
    for keep in (7, 14):
        cost = macs(tf.prune(whole, list(range(keep))))
        assert {("learned", f"keep={keep}"), ("learned, branches", f"budget.macs={cost}")} < budgets
    assert {cell.budget for cell in EQUAL_MACS} == {"keep=7", "keep=14"}
    assert only.overrides[:2] == ("checkpoint=digits", "experiment=digits_study")


def test_ranks_are_averaged_over_complete_cells_and_ties_share() -> None:
    found = scores(a=[[1.0, 3.0], [5.0], [0.0]], b=[[2.0, 2.0], [4.0], [1.0]], c=[[9.0], [9.0]])
    ranks = mean_ranks(found, ["c0", "c1", "c2"], ["a", "b", "c"], "fid")
    assert ranks == {"a": (1.5 + 2) / 2, "b": (1.5 + 1) / 2, "c": 3.0}


def test_differences_are_paired_and_relative() -> None:
    found = scores(learned=[[1.0, 2.0], [50.0]], first=[[2.0, 2.0], [100.0]])
    (row,) = comparisons(found, ["learned", "first"])
    half = math.log(0.5)
    assert row["pairs"] == 3 and row["fid"][0] == pytest.approx(100 * 2 * half / 3)
    assert row["fid"][1] == pytest.approx(100 * abs(half) / 3)
    (row,) = comparisons(found, ["learned", "first"], by_cell=True)
    assert row["pairs"] == 2 and row["fid"][0] == pytest.approx(100 * (half / 2 + half) / 2)
    assert row["fid"][1] == pytest.approx(100 * abs(half) / 4)


def test_a_method_without_runs_has_a_dash() -> None:
    text = table(scores(learned=[[1.0, 3.0]]), ["c0"], ["learned", "first"], "fid")
    assert "2.000 ± 1.414" in text and text.splitlines()[-1].split("|")[2].strip() == "-"


def test_a_picture_of_all_cells(tmp_path: Path) -> None:
    found = scores(learned=[[1.0, 2.0], [1.0]], first=[[2.0, 8.0], [0.9]], last=[[], [50.0]])
    assert log_ratios(found, "first", "fid") == {
        "c0": [pytest.approx(math.log(2)), pytest.approx(math.log(4))],
        "c1": [pytest.approx(math.log(0.9))],
    }
    cells, methods = ["c0", "c1"], ["learned", "first", "last", "never"]
    path = picture(found, cells, methods, tmp_path / "p.png")
    with Image.open(path) as image:
        seen = {tuple(c) for c in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    # Of "first" and "last"; orange and green, by their place.
    assert {(213, 94, 0), (0, 158, 115)} <= seen and (204, 121, 167) not in seen
    assert picture(scores(first=[[1.0]]), cells, methods, tmp_path / "none.png") is None


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished run"):
        report(tmp_path, plan(tmp_path, [0]))
