"""What trackers tell of a run's decision, and of how it was learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyfusion.decision import Decision
from tinyfusion.files import write_json
from tinyfusion.tracking import artifacts


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """The folder of a run that has cut a model, as far as it tells what was decided."""
    made = Decision((0, 2), 4, "learned", source_sha256="a" * 64, budget={"keep": 2})
    made.save(tmp_path / "prune/decision.json")
    record = {"source_sha256": "a" * 64, "decision": made.summary()}
    _folder_of_model(tmp_path / "prune/pruned", (0, 2), record)
    return tmp_path / "prune"


def _folder_of_model(folder: Path, kept: tuple[int, ...] | None, record: dict) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"kept_from": kept, "provenance": record})
    return folder


def test_a_run_tells_what_was_decided_of_the_model_it_was_given(tmp_path: Path, cut: Path) -> None:
    run, pruned = tmp_path / "run", cut / "pruned"

    def of(checkpoint: Path) -> dict:
        return artifacts.facts(run, {"checkpoint": str(checkpoint)})

    told = artifacts.facts(cut, {"checkpoint": "whole"})
    assert told["method"] == "learned" and told["budget"] == {"keep": 2}
    assert told["kept"] == [0, 2] and told["source_sha256"] == "a" * 64
    # By the decision beside it, also through a recovery that knew of none.
    record = {"recovered_from": str(pruned), "source_sha256": "b" * 64}
    recovered = _folder_of_model(tmp_path / "recover/recovered", (0, 2), record)
    assert of(pruned) == of(recovered) == told
    assert artifacts.facts(run, {"checkpoint": str(pruned), "images": "folder"}) == {}
    assert of(_folder_of_model(tmp_path / "whole", None, {})) == {}
    # A decision beside it that is of another model, or none at all.
    other = _folder_of_model(cut / "other", (1, 3), {"recovered_from": str(tmp_path / "gone")})
    assert of(other) == {"kept": [1, 3]}
    pruned.rename(tmp_path / "moved")
    assert of(tmp_path / "moved") == {k: told[k] for k in of(tmp_path / "moved")}
    assert of(tmp_path / "moved")["source_sha256"] == "a" * 64 and of(recovered) == {"kept": [0, 2]}


def test_what_is_told_of_a_budget_leaves_its_costs_to_the_file(tmp_path: Path) -> None:
    budget = {"macs": 0.5, "costs": [1, 2], "measured": {"x": 1}}
    Decision((0, 2), 4, "knapsack", budget=budget).save(tmp_path / "decision.json")
    assert artifacts.facts(tmp_path, {})["budget"] == {"macs": 0.5}


@pytest.mark.parametrize(("entries", "kept"), [(3, 3), (100, 100), (101, 51), (1000, 100)])
def test_curves_of_gates_have_at_most_a_hundred_steps(tmp_path, entries: int, kept: int) -> None:
    trace = [{"step": step, "inclusion": [0.25, 0.75]} for step in range(entries)]
    (tmp_path / "prune/second").mkdir(parents=True)
    write_json(tmp_path / "prune/second/decision_trace.json", trace)
    ((phase, rows),) = artifacts.gate_curves(tmp_path)
    assert phase == "prune/second" and rows[:2] == [[0, 0, 0.25], [0, 1, 0.75]]
    assert len(rows) == 2 * kept
