"""What records keep of a run's folder."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tinyfusion.files import write_json, write_text
from tinyfusion.pruners.candidate_list import evaluate
from tinyfusion.studies.harvest import QUANTILES, TRACE_RECORDS, curves_of, results_of


def test_curves_of_scores_and_the_first_of_losses(tmp_path: Path) -> None:
    head = "step,train/features,evaluate/fid"
    write_text(tmp_path / "recover/log/version_0/metrics.csv", f"{head}\n0,28.1234567,\n9,5,\n")
    write_text(tmp_path / "recover/log/version_1/metrics.csv", f"{head}\n19,4,\n20,,1.5\n")
    assert curves_of(tmp_path) == {
        "recover/train/features": [[0, 28.1235]],
        "recover/evaluate/fid": [[20, 1.5]],
    }


def test_a_trace_is_thinned_and_ends_with_the_decision(tmp_path: Path) -> None:
    records = [
        {"step": n, "kept": [0], "kept_live": [0], "inclusion": [0.12345, 0.9]}
        for n in range(1, 102)
    ]
    write_json(tmp_path / "prune/decision_trace.json", records)
    trace = results_of(tmp_path)["trace"]
    assert len(trace) <= TRACE_RECORDS and trace[-1]["step"] == 101
    assert trace[0] == {"step": trace[0]["step"], "kept": [0], "inclusion": [0.123, 0.9]}


def test_losses_are_kept_as_quantiles(tmp_path: Path) -> None:
    losses_of = [1 + n / 1000 for n in range(2000)] + [math.inf]
    kept = [(n,) for n in range(len(losses_of))]
    scores: Any = SimpleNamespace(losses=lambda sets: [(losses_of[n], 0.1) for (n,) in sets])
    evaluate(kept, scores, {"seed": 0}, tmp_path / "prune")
    losses = results_of(tmp_path)["losses"]
    assert (losses["count"], losses["finite"], len(losses["quantiles"])) == (2001, 2000, QUANTILES)
    assert (losses["quantiles"][0], losses["quantiles"][-1]) == (1.0, pytest.approx(2.999))
