"""What reports of studies make of records: tables beside the paper's figures, and pictures."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tinyfusion as tf
from tests.studies.outcomes import models, outcome
from tinyfusion.errors import InputError
from tinyfusion.figures.density import density_of
from tinyfusion.metrics.speed import macs
from tinyfusion.report.paper import paper_figure
from tinyfusion.studies import learning_costs, paper_figures, pruners
from tinyfusion.studies.correlation import p_value, points
from tinyfusion.studies.definition import read_study
from tinyfusion.studies.outcome import Outcome
from tinyfusion.studies.works import Cell
from tinyfusion.studies.written import made as report_on
from tinyfusion.studies.written import write


def lines(text: str) -> list[list[str]]:
    """Cells of the rows of all Markdown tables of a text, without marks of the best."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip(" *") for cell in row.split("|")[1:-1]] for row in rows]


def text_of(found: Outcome, folder: Path) -> str:
    """The text of a study's report."""
    return write(found, folder)[0]


def rows_in(file: Path) -> list[dict[str, str]]:
    """The rows of a table that was written as CSV."""
    return list(csv.DictReader(file.read_text().splitlines()))


def test_a_table_has_means_over_seeds_and_the_papers_figures(tmp_path: Path) -> None:
    def made(cell: Cell) -> dict[str, Any] | None:
        if cell.row.labels["pattern"] == "7:14":
            return None
        return {"results": models(1.0 + cell.seed, 0.3)}

    text = text_of(outcome("table4", made), tmp_path)
    head, _, first, *rest = lines(text)
    assert first[head.index("FID ↓")] == "2.000 ± 1.000" and first[head.index("seeds")] == "3"
    assert first[head.index("paper: FID ↓")] == "33.39"
    missing = next(row for row in rest if row[:2] == ["7:14", "LoRA"])
    assert missing[head.index("FID ↓")] == "-" and missing[head.index("paper: FID ↓")] == "49.41"
    assert "9 of 27 runs are missing; `tinyfusion study table4 scale=digits`" in text
    assert (
        "tinyfusion run experiment=digits_study training.mask_learning.steps=150 scheme=7:14"
        in text
    )
    assert (tmp_path / "table4.md").read_text() == text
    first_row = rows_in(tmp_path / "table4.csv")[0]
    assert first_row["paper IS"] == "54.75" and first_row["fid_std"] == "1.0"
    assert "\\toprule" in (tmp_path / "table4.tex").read_text()


def test_no_cell_is_filled_without_a_run(tmp_path: Path) -> None:
    for number in (1, 2, 3, 5, 7, 8):
        text = text_of(outcome(f"table{number}", lambda cell: None), tmp_path)
        head, _, *rows = lines(text)
        first = head.index("seeds") + 1
        paper = [place for place, name in enumerate(head) if name.startswith("paper")]
        for row in rows:
            assert all(cell == "-" for cell in row[first : min(paper)]), row
            assert row[head.index("seeds")] in ("0", "-")


def test_budgets_are_ranked_and_drawn(tmp_path: Path) -> None:
    factors = {"learned": 1.0, "sensitivity": 1.1, "first": 2.0}

    def made(cell: Cell) -> dict[str, Any] | None:
        factor = factors.get(cell.row.labels["method"])
        if factor is None:
            return None
        return {
            "results": models(factor, 0.3, 0.01 * factor),
            "decision": {"kept": [0, 1 + cell.seed]},
        }

    text = text_of(outcome("budgets", made), tmp_path)
    assert "- DiT 5, learned (seed 1): 0 2" in text
    assert "\n\n360 of 450 runs are missing" in text  # no part of the list before it
    pairs = {row["method"]: row for row in rows_in(tmp_path / "budgets_differences.csv")}
    assert pairs["first"]["pairs"] == "30"
    assert float(pairs["first"]["teacher_distance"]) == pytest.approx(-100 * math.log(2))
    with Image.open(tmp_path / "budgets.png") as image:
        assert min(image.size) > 300
    with pytest.raises(InputError, match="study budgets has no complete run yet"):
        text_of(outcome("budgets", lambda cell: None), tmp_path)


def test_branches_cost_what_blocks_cost() -> None:
    whole = tf.load("digits")
    costs = {f"DiT {n}": macs(tf.prune(whole, list(range(n)))) for n in (7, 14)}
    for row in read_study("branches", "digits").rows:
        assert row.plan is not None
        if "branches" in row.labels["method"]:
            assert f"budget.macs={costs[row.labels['cell']]}" in row.plan.overrides


FIDS = {"learned 1:2": 1.5, "shortgpt": 0.9, "oracle": 1.2, "first": 1.0, "random": 3.0}
LOSSES = {"learned 1:2": 0.3, "shortgpt": 0.5, "oracle": 0.4, "first": 0.45, "random": 0.2}


def of_pruners(cell: Cell) -> dict[str, Any] | None:
    pruner = cell.row.labels["pruner"]
    if pruner not in FIDS or cell.row.labels["recovery"] != "kd":
        return None
    fid = FIDS[pruner] + 0.2 * cell.seed
    kept = [list(FIDS).index(pruner), 9 + cell.seed]
    return {"results": models(fid, LOSSES[pruner]), "decision": {"kept": kept}}


def test_the_loss_after_the_cut_is_correlated_with_the_recovered_model(tmp_path: Path) -> None:
    text = text_of(outcome("pruners", of_pruners), tmp_path)
    rows = {row["pruner"]: row for row in rows_in(tmp_path / "pruners.csv")}
    assert list(rows) == ["learned 1:2", "shortgpt", "oracle", "first", "random"]
    assert float(rows["shortgpt"]["fid kd"]) == pytest.approx(1.1)
    assert float(rows["shortgpt"]["fid kd_std"]) == pytest.approx(0.2)
    assert rows["shortgpt"]["fid masked_kd"] == ""
    found = rows_in(tmp_path / "pruners_correlations.csv")
    by = {(row["before"], row["after"], row["among"]): row for row in found}
    # The lower the loss, the worse the model: exactly reversed ranks.
    row = by["calibration loss", "FID", "all"]
    assert float(row["rho"]) == pytest.approx(-1) and row["choices"] == "5"
    assert float(row["p"]) == pytest.approx(2 / 120)  # of all orders of five, the two this extreme
    assert "- shortgpt, kd (seed 1): 1 10" in text
    assert (tmp_path / "pruners.png").stat().st_size > 10_000


def test_pruners_that_chose_the_same_are_one_point(tmp_path: Path) -> None:
    def made(cell: Cell) -> dict[str, Any] | None:
        own = of_pruners(cell)
        if own is not None and cell.row.labels["pruner"] in ("first", "random"):
            own["decision"] = {"kept": [3, 9 + cell.seed]}
        return own

    text_of(outcome("pruners", made), tmp_path)
    found = rows_in(tmp_path / "pruners_correlations.csv")
    assert {row["choices"] for row in found if row["among"] == "all"} == {"4"}
    students = pruners.students_of(outcome("pruners", made))
    assert {point.label for point in points(students, "kd")} == set(FIDS)


def test_p_values_of_many_points_are_those_of_random_orders() -> None:
    x = list(range(12))
    assert p_value(x, x, 1.0) == pytest.approx(1 / 20_001)
    assert p_value(x, [5, 6, 4, 7, 3, 8, 2, 9, 1, 10, 0, 11], 0.0) == 1.0


def test_costs_and_choices_are_compared_with_the_dense_steps(tmp_path: Path) -> None:
    cost = {("dense", 0): 100.0, ("sparse", 0): 50.0, ("settled", 0): 25.0, ("settled", 1): 30.0}

    def made(cell: Cell) -> dict[str, Any] | None:
        key = (cell.row.labels["way"], cell.seed)
        if cell.row.labels["cell"] != "DiT 7" or key not in cost:
            return None
        kept = [0, 5] if key == ("settled", 0) else [0, 1]
        steps = 200 if key == ("settled", 0) else 300
        return {
            "results": {"cost": {"seconds": cost[key]}},
            "decision": {"kept": kept, "scores": {"steps": steps}},
        }

    found = outcome("learning_costs", made)
    rows = {(row["way"], row["seed"]): row for row in learning_costs.rows_of(found)}
    assert rows["sparse", 0]["times"] == 2.0 and rows["sparse", 0]["others"] == 0
    assert rows["settled", 0]["others"] == 1 and "times" not in rows["settled", 1]
    table = lines(text_of(found, tmp_path))
    assert ["sparse", "1", "50", "2.00", "300", "1 of 1", "0"] in table
    assert ["settled", "2", "28", "4.00", "250", "0 of 1", "1"] in table


def test_table_6_is_what_the_experiments_are_composed_with(tmp_path: Path) -> None:
    text = text_of(outcome("table6", lambda cell: None, "imagenet"), tmp_path)
    head, _, *rows = lines(text)
    by = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert by["SiT-D14"]["beta start"] == "0.0002" and by["DiT-D14"]["lr"] == "0.0002"
    differing = [cell for row in rows for cell in row if "paper" in cell]
    assert differing == ["LoRA-mixed groups (paper: LoRA-1:2)"]


def test_figure_4_has_the_papers_points_beside_ours(tmp_path: Path) -> None:
    series = {
        "depth": [{"label": "14", "ratio": 0.5, "speed_up": 1.9}],
        "width": [{"label": "176", "ratio": 0.5, "speed_up": 1.5}],
    }
    results = {"speed": {"settings": {"device": "CPU"}, "series": series}}
    text = text_of(outcome("figure4", lambda cell: {"results": results}), tmp_path)
    assert ["14", "50.0", "2.00", "1.90", "1.08"] in lines(text)
    assert ["-", "-", "-", "-", "11.60"] in lines(text)
    assert (tmp_path / "figure4.png").is_file() and "device CPU" in text


def test_figure_5_marks_methods(tmp_path: Path) -> None:
    quantiles = [0.2 + 0.01 * n for n in range(100)]
    results = {"losses": {"count": 1000, "finite": 1000, "std": 0.3, "quantiles": quantiles}}
    marks = {"learned": {"loss": 0.3, "percentile": 12.5}}
    made = {"results": results, "decision": {"scores": {"marks": marks}}}
    text = text_of(outcome("figure5", lambda cell: made), tmp_path)
    assert ["learned", "0.3", "12.50", "0.98"] in lines(text)
    assert ["largest loss", "1.19", "-", "37.69"] in lines(text)
    assert ["median loss", "0.695", "-", "-"] in lines(text)
    assert (tmp_path / "figure5.png").is_file()


def test_rare_extremes_make_no_peaks_in_figure_5() -> None:
    values = np.sort(np.random.default_rng(0).lognormal(0, 0.25, 20_000))
    quantiles = np.quantile(values, np.linspace(0, 1, 512)).tolist()
    _, density = density_of(np.array(paper_figures.as_many(quantiles, len(values))))
    assert max(density[0], density[-1]) < 0.006 * density.max()
    assert density_of(np.array(quantiles))[1][0] > 0.01 * density.max()  # what is avoided
    assert paper_figures.as_many(quantiles, 512) == pytest.approx(quantiles)


def test_figure_8_has_both_models_and_the_papers(tmp_path: Path) -> None:
    ends = {"max": 9.0, "min": -8.0, "std": 1.0}
    model = {"depth": 28, "whole": ends}
    results = {"activations": {"models": {"teacher": model, "student": model | {"depth": 14}}}}
    text = text_of(outcome("figure8", lambda cell: {"results": results}), tmp_path)
    assert ["masked KD: student", "14", "9.00", "-8.00", "1.00"] in lines(text)
    printed = paper_figure(8)["rows"][0]
    assert f"{printed['min']:,.2f}" in text


def test_figures_of_choices_and_curves(tmp_path: Path) -> None:
    trace = [
        {"step": step, "kept": [0, 2], "inclusion": [0.9, 0.1, 0.8, 0.2]} for step in (5, 10, 15)
    ]
    learned = outcome(
        "figure9_11", lambda cell: {"results": {"trace": trace}, "decision": {"kept": [0, 2]}}
    )
    text = text_of(learned, tmp_path)
    assert text.count(": 0 2") == 12 and (tmp_path / "figure9_11.png").is_file()
    curves = {"recover/evaluate/fid": [[300, 4.0], [600, 2.0]]}
    text = text_of(outcome("figure14", lambda cell: {"curves": curves}), tmp_path)
    assert ["600", "2.000 ± 0.000", "2.000 ± 0.000", "2.000 ± 0.000"] in lines(text)
    assert (tmp_path / "figure14.png").is_file()


@pytest.mark.parametrize("name", ["figure4", "figure5", "figure6", "figure9_11", "figure14"])
def test_a_figure_without_runs_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"no complete run yet|no point to draw"):
        report_on(outcome(name, lambda cell: None), tmp_path)
