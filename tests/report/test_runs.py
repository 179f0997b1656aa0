"""Folders of runs are read, finished or not, and of earlier versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinyfusion.errors import InputError
from tinyfusion.report.reading import find_runs, read_run

MakeRun = Callable[..., Path]
OLD = Path(__file__).parents[1] / "data" / "version_0_1"


def log(folder: Path, version: int, rows: dict[int, float], phase: str = "recover") -> None:
    file = folder / phase / "log" / f"version_{version}" / "metrics.csv"
    file.parent.mkdir(parents=True)
    lines = [f"0,{step},{value},," for step, value in rows.items()]
    file.write_text("\n".join(["epoch,step,train/loss,evaluate/fid,x", *lines]) + "\n")


def test_a_finished_run_is_read_whole(make_run: MakeRun):
    run = read_run(make_run("a", fid=3.5, pruner="random", keep=1, seed=4))
    assert (run.command, run.state, run.version, run.seconds) == ("run", "finished", "9.9", 61.0)
    assert run.command_line == "tinyfusion run pruner=random keep=1"
    assert run.result["fid"] == 3.5 and run.reference["fid"] == 1.0 and run.kept == (0,)
    assert run.setting("training.recovery.steps") == 100
    assert run.setting("training.nothing.steps") is None and run.setting("seed.steps") is None


@pytest.mark.parametrize("state", ["failed", "unfinished"])
def test_what_did_not_finish_is_found_and_says_why(make_run: MakeRun, state: str):
    run = read_run(make_run("a", state=state))
    assert run.state == state and not run.result
    assert run.reason == {"failed": "run stopped; continue with resume=x"}.get(state, "step 3")


def test_runs_are_found_below_folders_once_and_in_order(make_run: MakeRun):
    b, a = make_run("sweep/b"), make_run("sweep/a")
    (a / "round_1").mkdir()
    (a / "round_1" / "metrics.json").write_text("{}")  # a part of run a
    assert [run.folder for run in find_runs([a.parent, b])] == [a, b]
    assert [run.folder for run in find_runs([b])] == [b]


def test_folders_without_runs_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no run in .*empty"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(InputError, match="is not a folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="holds no run"):
        read_run(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.json", "{"), ("metrics.json", "[]"), ("config.yaml", "a: ["),
        ("config.yaml", "- 1"), ("finished.json", "3"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(make_run: MakeRun, name: str, text: str):
    folder = make_run("a")
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=name) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


def test_a_resumed_phase_replaces_the_steps_that_it_repeats(make_run: MakeRun):
    folder = make_run("a")
    log(folder, 0, {10: 5.0, 20: 4.0, 30: 3.0})
    log(folder, 2, {20: 2.0, 30: 1.0, 40: 0.5})
    log(folder, 10, {40: 0.25})
    log(folder, 0, {1: 9.0}, phase="prune")
    curves = read_run(folder).curves()
    assert curves["recover/train/loss"] == [(10, 5.0), (20, 2.0), (30, 1.0), (40, 0.25)]
    assert curves["prune/train/loss"] == [(1, 9.0)]
    assert set(curves) == {"recover/train/loss", "prune/train/loss"}


def test_points_that_are_not_finite_are_left_out(make_run: MakeRun):
    folder = make_run("a")
    log(folder, 0, {1: float("nan"), 2: float("inf"), 3: 1.0})
    assert read_run(folder).curves() == {"recover/train/loss": [(3, 1.0)]}


def test_a_damaged_log_is_named(make_run: MakeRun):
    folder = make_run("a")
    log(folder, 0, {1: 1.0})
    file = next(folder.rglob("metrics.csv"))
    file.write_text("epoch,step,train/loss\n0,1,many\n")
    with pytest.raises(InputError, match=r"metrics\.csv can't be read"):
        read_run(folder).curves()


def test_runs_of_version_0_1_are_read():
    runs = {run.folder.name: run for run in find_runs([OLD])}
    assert set(runs) == {"learned", "shortgpt", "widths"}
    for name, run in runs.items():
        told = json.loads((OLD / name / "metrics.json").read_text())
        assert (run.command, run.state) == ("prune", "finished")
        assert run.result == told["models"]["pruned"] and run.reference["depth"] == 4
    assert runs["learned"].kept == (0, 3) and runs["widths"].kept is None


def test_a_run_of_evaluate_has_its_model_or_its_images(make_run: MakeRun):
    folder = make_run("a", command="evaluate")
    for key in ("model", "images"):
        (folder / "metrics.json").write_text(json.dumps({key: {"fid": 7.0}, "protocol": {}}))
        assert read_run(folder).result == {"fid": 7.0}


def decided(folder: Path, **made: Any) -> Path:
    """Say in a run's folder which configuration made its decision."""
    (folder / "decision.json").write_text(json.dumps({"config": made}))
    return folder


def test_settings_that_decided_are_those_of_the_run_that_decided(make_run: MakeRun):
    folder = make_run("a", decision="/x/decision.json", scheme=None, delta="none", seed=3)
    training = {"mask_learning": {"steps": 7}, "recovery": {"steps": 1}}
    run = read_run(decided(folder, seed=5, scheme="1:2", delta="full", start=9, training=training))
    assert (run.setting("scheme"), run.setting("delta")) == ("1:2", "full")
    assert run.setting("training.mask_learning.steps") == 7
    # What recovered it is its own.
    assert run.setting("training.recovery.steps") == 100 and run.setting("start") is None
    assert (run.setting("seed"), run.setting("decision_seed")) == (3, 5)
    assert run.setting("decision") is None
    # One that is the run's own seed tells nothing apart.
    assert read_run(decided(folder, seed=3)).setting("decision_seed") is None


def test_a_decision_without_its_configuration_stays_a_file(make_run: MakeRun):
    folder = make_run("a", decision="/x/decision.json")
    assert read_run(folder).setting("decision") == "/x/decision.json"
    (folder / "decision.json").write_text('{"config": [1]}')
    assert read_run(folder).setting("decision") == "/x/decision.json"
    own = decided(make_run("b", decision=None, keep=1), keep=3)
    assert read_run(own).setting("keep") == 1


def test_files_of_the_configuration_are_known_from_the_command_line(make_run: MakeRun):
    folder = make_run("a", recovery={"x": 1})
    line = "tinyfusion run recovery=kd pruner=learned keep=2 training=[1] recovery.x=y missing=z"
    (folder / "command.txt").write_text(line)
    assert read_run(folder).choices == {"recovery": "kd", "pruner": "learned"}
    (folder / "command.txt").write_text("tinyfusion run 'recovery=kd")
    assert not read_run(folder).choices


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"models": [1]}, "models holds no figures"),
        ({"models": {"recovered": 3}}, "models holds no figures"),
        ({"models": {"recovered": {"fid": "x"}}}, "recovered.fid is 'x'; valid: a number"),
        ({"models": {}, "protocol": 3}, "protocol holds no keys"),
        ({"models": {}, "decision": [1]}, "decision holds no keys"),
    ],
)
def test_records_of_wrong_types_are_refused_in_a_line(make_run: MakeRun, record: Any, said: str):
    folder = make_run("a")
    (folder / "metrics.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=said) as caught:
        read_run(folder)
    assert "metrics.json" in str(caught.value) and "\n" not in str(caught.value)
