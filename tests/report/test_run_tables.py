"""Tables of runs: what differs, seeds, the best, and what is asked for."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyfusion.errors import InputError
from tinyfusion.report.differences import varying
from tinyfusion.report.labels import labels_of
from tinyfusion.report.reading import find_runs
from tinyfusion.report.runs import Run
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


def recovered(make_run: MakeRun, name: str, kind: str, seed: int = 0, **objective: float) -> Path:
    """A run of one of the files of `recovery`, whose keys are changed by its command line."""
    files = {"kd": {"task": 0.1, "output": 0.9}, "finetune": {"task": 1.0}}
    folder = make_run(name, seed=seed, recovery={**files[kind], **objective})
    changes = " ".join(f"recovery.{key}={value}" for key, value in objective.items())
    (folder / "command.txt").write_text(f"tinyfusion run recovery={kind} {changes}")
    return folder


def test_keys_of_a_file_that_was_chosen_are_one_column(make_run: MakeRun):
    folders = [recovered(make_run, "a", "kd"), recovered(make_run, "b", "finetune")]
    table = table_of(runs_of(*folders))
    assert table.settings == ["recovery"]
    assert sorted(row["recovery"] for row in table.rows) == ["finetune", "kd"]


def test_keys_that_were_changed_beside_a_file_have_columns(make_run: MakeRun):
    folders = [
        recovered(make_run, "a", "kd"), recovered(make_run, "b", "kd", task=0.5),
        recovered(make_run, "c", "finetune"),
    ]  # fmt: skip
    table = table_of(runs_of(*folders))
    assert table.settings == ["recovery", "recovery.task"]
    found = {(row["recovery"], row["recovery.task"]) for row in table.rows}
    assert found == {("kd", 0.1), ("kd", 0.5), ("finetune", 1.0)}


def test_without_its_command_a_run_is_told_by_its_keys(make_run: MakeRun):
    folders = [recovered(make_run, "a", "kd"), recovered(make_run, "b", "finetune")]
    (folders[1] / "command.txt").unlink()
    assert set(table_of(runs_of(*folders)).settings) == {"recovery.task", "recovery.output"}


def test_runs_whose_decisions_differ_in_their_seed_are_one_row(make_run: MakeRun):
    folders = []
    for seed, of_decision, fid in ((0, 0, 1.0), (1, 1, 2.0), (2, 0, 3.0)):
        name = f"run{seed}"
        folder = make_run(name, seed=seed, fid=fid, decision=f"/{name}/decision.json")
        made = {"config": {"scheme": "1:2", "seed": of_decision}}
        (folder / "decision.json").write_text(json.dumps(made))
        folders.append(folder)
    (row,) = table_of(runs_of(*folders)).rows
    assert row["seeds"] == 3 and row["fid"] == (2.0, 1.0)


def test_seeds_that_agree_have_a_spread_of_zero(make_run: MakeRun):
    (row,) = table_of(runs_of(*(make_run(f"{s}", fid=1.5, seed=s) for s in range(2)))).rows
    assert row["fid"] == (1.5, 0.0) and row["depth"] == 2 and row["parameters"] == 2000


def test_what_has_no_fid_comes_last_and_is_not_the_best(make_run: MakeRun):
    whole = [make_run("b", fid=4.0), make_run("c", fid=3.0, pruner="random")]
    only_cut = make_run("a", fid=None, pruner="shortgpt")
    record = json.loads((only_cut / "metrics.json").read_text())
    (only_cut / "metrics.json").write_text(json.dumps({**record, "protocol": {}}))
    table = table_of(runs_of(only_cut, *whole))
    assert [row["method"] for row in table.rows] == ["random", "learned", "shortgpt"]
    assert [row["method"] for row, _, _ in best_rows(table)] == ["random"]


def test_columns_that_tell_rows_apart_come_before_others(make_run: MakeRun):
    # Twelve keys tell the same run from the others, each in another way; only z tells those apart.
    folders = [
        make_run(f"{i}", **{f"key{k}": k if i == 0 else -1 for k in range(12)}, z=i)
        for i in range(3)
    ]
    table = table_of(runs_of(*folders))
    assert "z" in table.settings and len(table.settings) == 10
    assert len(table.hidden) == 3 and "z" not in table.hidden


def test_labels_have_no_more_than_tells_runs_apart(make_run: MakeRun):
    runs = runs_of(
        make_run("a", keep=1, note="x", seed=4), make_run("b", note="y", seed=4),
        make_run("c", note="y", seed=5),
    )  # fmt: skip
    assert labels_of(runs, ["seed", "keep", "note"]) == [
        "learned, keep=1, seed=4", "learned, keep=2, seed=4", "learned, keep=2, seed=5"
    ]  # fmt: skip


def test_labels_name_the_command_and_the_end_of_a_key(make_run: MakeRun):
    runs = runs_of(
        make_run("a", x={"rate": 1}, y={"rate": 1}), make_run("b", x={"rate": 2}, y={"rate": 3}),
        make_run("c", x={"rate": 2}, y={"rate": 1}),
    )  # fmt: skip
    assert labels_of(runs, ["command", "x.rate"])[0] == "learned, run, rate=1"
    assert labels_of(runs, ["x.rate", "y.rate"])[0] == "learned, x.rate=1, y.rate=1"
