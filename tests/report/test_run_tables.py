"""Tables of runs: what differs, seeds, the best, and what is asked for."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyfusion.errors import InputError
from tinyfusion.report.differences import varying
from tinyfusion.report.labels import labels_of
from tinyfusion.report.runs import Run, find_runs
from tinyfusion.report.tables import best_rows, table_of

MakeRun = Callable[..., Path]


def runs_of(*folders: Path) -> list[Run]:
    return find_runs(folders)


def test_columns_are_what_differs_and_what_was_measured(make_run: MakeRun):
    table = table_of(runs_of(make_run("a", keep=1), make_run("b", keep=2), make_run("c", keep=3)))
    assert list(table.columns) == [
        "keep", "fid", "inception_score", "held_out_loss", "depth", "parameters"
    ]  # fmt: skip
    assert [row["keep"] for row in table.rows] == [1, 2, 3]


def test_the_method_stands_for_the_class_of_the_pruner(make_run: MakeRun):
    table = table_of(runs_of(make_run("a"), make_run("b", pruner="random", fid=1.5)))
    assert next(iter(table.columns)) == "method"
    assert [row["method"] for row in table.rows] == ["random", "learned"]
    assert "pruner._target_" not in table.columns


def test_arguments_of_another_class_and_keys_that_follow_others_are_not_listed(make_run: MakeRun):
    a = make_run("a", sampler={"_target_": "x.One", "steps": 3}, other={"keep": 1}, keep=1)
    b = make_run("b", sampler={"_target_": "x.Two", "rate": 3}, other={"keep": 2}, keep=2)
    c = make_run("c", sampler={"_target_": "x.Two", "rate": 3}, other={"keep": 1}, keep=1)
    assert varying(runs_of(a, b, c)) == ["keep", "sampler._target_"]


def test_seeds_become_a_mean_and_a_deviation(make_run: MakeRun):
    fids = [2.0, 3.0, 7.0]
    folders = [make_run(f"s{seed}", fid=fid, seed=seed) for seed, fid in enumerate(fids)]
    table = table_of(runs_of(*folders, make_run("other", pruner="random", fid=5.0)))
    learned, other = table.rows
    assert learned["fid"] == (4.0, statistics.stdev(fids)) and learned["seeds"] == 3
    assert other["fid"] == 5.0 and other["seeds"] == 1 and "seed" not in table.columns
    assert len(table_of(runs_of(*folders), merge=False).rows) == 3


def test_runs_with_other_decisions_are_not_seeds_of_each_other(make_run: MakeRun):
    folders = [make_run(name, fid=1.0, decision=f"/x/{name}/decision.json") for name in "ab"]
    table = table_of(runs_of(*folders))
    assert [row["decision"] for row in table.rows] == ["a/decision.json", "b/decision.json"]


def test_the_best_run_of_each_budget(make_run: MakeRun):
    folders = [
        make_run("a", fid=4.0, keep=1), make_run("b", fid=3.0, keep=1, pruner="random"),
        make_run("c", fid=1.5, keep=2), make_run("d", fid=2.0, keep=2, pruner="random"),
    ]  # fmt: skip
    best = best_rows(table_of(runs_of(*folders)))
    assert [(row["method"], row["fid"], figure) for row, _, figure in best] == [
        ("random", 3.0, "fid"), ("learned", 1.5, "fid")
    ]  # fmt: skip
    assert [row["_budget"] for row, _, _ in best] == ["1 of 4 blocks", "2 of 4 blocks"]


def test_without_fid_the_held_out_loss_decides(make_run: MakeRun):
    ((_, _, figure),) = best_rows(table_of(runs_of(make_run("a", fid=None))))
    assert figure == "held_out_loss"


@pytest.mark.parametrize(
    ("sort", "expected"),
    [("fid", [1.0, 2.0, 3.0]), ("inception_score", [1.0, 2.0, 3.0]), ("note", [2.0, 3.0, 1.0])],
)
def test_sorted_best_first_and_what_is_missing_last(
    make_run: MakeRun, sort: str, expected: list[float]
):
    folders = [make_run("a", fid=3.0, note="y"), make_run("b", fid=1.0), make_run("c", note="x")]
    table = table_of(runs_of(*folders), columns=["fid", "inception_score", "note"], sort=sort)
    assert [row["fid"] for row in table.rows] == expected


def test_columns_that_are_asked_for(make_run: MakeRun):
    runs = runs_of(make_run("a"), make_run("b", keep=1))
    table = table_of(runs, columns=["run", "training.recovery.steps", "fid"])
    assert list(table.columns) == ["run", "training.recovery.steps", "fid"]
    assert {row["run"] for row in table.rows} == {"a", "b"}
    assert {row["training.recovery.steps"] for row in table.rows} == {100}


def test_unknown_columns_are_refused_by_name(make_run: MakeRun):
    runs = runs_of(make_run("a"))
    with pytest.raises(InputError, match=r"no run has 'fids'; valid: fid, "):
        table_of(runs, columns=["fids"])
    with pytest.raises(InputError, match=r"no column 'recall'; valid: "):
        table_of(runs, sort="recall")


def test_unfinished_runs_have_no_row(make_run: MakeRun):
    runs = runs_of(make_run("a"), make_run("b", state="failed"))
    assert len(runs) == 2 and len(table_of(runs).rows) == 1
    assert not table_of(runs[1:]).rows


def test_labels_tell_runs_apart(make_run: MakeRun):
    runs = runs_of(make_run("a", keep=1), make_run("b"), make_run("c"))
    assert labels_of(runs, ["keep"]) == [
        "learned, keep=1",
        "learned, keep=2",
        "learned, keep=2 (2)",
    ]
