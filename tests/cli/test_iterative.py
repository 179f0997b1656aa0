"""`tinyfusion run experiment=iterative`, from end to end on a tiny model."""

from __future__ import annotations

import json
import shutil

import pytest

import tinyfusion as tf_api

ROUNDS = ("experiment=iterative", "iterative.depths=[2,1]", "pruner=random")


@pytest.mark.slow
def test_two_rounds_in_one_job_and_once_more_where_it_was_killed(tf, root) -> None:
    folder = root / "whole"
    recovery = ("recovery=laptop_kd", "recovery.calibration_samples=8")
    result = tf("run", *ROUNDS, *recovery, f"hydra.run.dir={folder}")
    assert result.status == 0, result.err
    first, last = (tf_api.load(folder / name) for name in ("round_1/recovered", "recovered"))
    assert (first.depth, last.depth) == (2, 1)
    # The decision of the last round counts in the model of the first; kept blocks do not.
    decision = tf_api.Decision.load(folder / "decision.json")
    assert decision.source_depth == 2
    assert last.kept_from == (first.kept_from[decision.kept[0]],)
    models = json.loads((folder / "metrics.json").read_text())["models"]
    rows = ["source", "round 1", "pruned", "recovered", "recovered (live weights)"]
    assert list(models) == rows
    assert [models[name]["depth"] for name in rows] == [4, 2, 1, 1, 1]
    assert not (folder / "round_1/metrics.json").exists()
    provenance = json.loads((folder / "recovered/config.json").read_text())["provenance"]
    assert provenance["recovered_from"] == str(folder / "round_1/recovered")
    weights = provenance["feature_weights"]
    assert len(weights) == len(provenance["alignment"]) == 1 and min(weights) == 1.0

    # As if the job had been killed in its last round.
    weights = (folder / "recovered/model.safetensors").read_bytes()
    before = (folder / "round_1/recovered/model.safetensors").stat().st_mtime_ns
    for name in ("finished.json", "metrics.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "recovered")
    assert tf("run", f"resume={folder}", exact=True).status == 0
    assert (folder / "recovered/model.safetensors").read_bytes() == weights
    assert (folder / "round_1/recovered/model.safetensors").stat().st_mtime_ns == before


def test_what_can_not_be_is_refused_before_any_work(tf, root) -> None:
    result = tf("run", *ROUNDS, "iterative.weights=nonsense")
    assert result.status == 2 and "iterative.weights='nonsense'" in result.err
    assert len(result.err.splitlines()) == 1 and not list(root.rglob("round_1"))


def test_a_dry_run_is_one_of_every_round(tf, root) -> None:
    small = (ROUNDS[2], "recovery=laptop_kd", "stages=seams_first", "dry_run=true")
    result = tf("run", *ROUNDS[:2], *small)
    assert result.status == 0, result.err
    assert result.out.count("dry run; nothing is trained or written") == 1
    for text in ("round 1 of 2\n\nnetwork     dit, 4 blocks", "pruned      2 blocks"):
        assert text in result.out
    for text in ("round 2 of 2\n\nnetwork     dit, 2 blocks", "pruned      1 blocks"):
        assert text in result.out
    said = " ".join(result.out.split())
    assert said.count("all 2 blocks, each of which is next to a removal") == 1
    assert result.out.count("\nevaluation ") == 1 and "evaluation  5 model(s)" in result.out
    # Rounds that nothing needs are not made.
    source = ("iterative.weights=source", "iterative.teacher=source")
    result = tf("run", *ROUNDS[:2], *small, *source)
    assert "round 1" not in result.out and "network     dit, 4 blocks" in result.out
    assert "evaluation  4 model(s)" in result.out
    # A teacher that is no ancestor of the student.
    result = tf("run", *ROUNDS[:2], *small, "iterative.weights=source")
    assert result.status == 0 and "evaluation  5 model(s)" in result.out
    result = tf("run", *ROUNDS[:2], "iterative.depths=[2,3]", "dry_run=true")
    assert result.status == 2 and "must decrease" in result.err
    assert not list(root.rglob("*.json"))
