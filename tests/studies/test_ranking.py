"""Statistics over cells: ranks, paired differences, tables and the picture of ratios."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyfusion.studies.ranking import comparisons, log_ratios, mean_ranks, picture, table

FIGURES = ("fid", "held_out_loss", "teacher_distance")


def scores(**by_method: list[list[float]]):
    """The same value for all figures: per method, per cell, per seed."""
    return {
        (f"c{cell}", method.replace("_", " "), seed): dict.fromkeys(FIGURES, value)
        for method, cells in by_method.items()
        for cell, seeds in enumerate(cells)
        for seed, value in enumerate(seeds)
    }


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
    text = table(scores(learned=[[1.0, 3.0]]), ["c0"], ["learned", "first"], "fid").markdown
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
