"""Decisions and models that version 0.1.0 wrote load and apply as they did then.

The files in tests/data/version_0_1 come from `tinyfusion prune` of that version on ``source``, a
DiT of 4 blocks, with pruner=learned, pruner=shortgpt and pruner=diff_pruning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tinyfusion
from tinyfusion.checkpoints import load, read_checkpoint
from tinyfusion.checkpoints.card import model_card
from tinyfusion.checkpoints.lineage import lineage
from tinyfusion.decision import Decision, find_decision
from tinyfusion.errors import InputError
from tinyfusion.surgery import prune
from tinyfusion.tools.facts import report
from tinyfusion.tools.inspect import examine

FILES = Path(__file__).parent / "data" / "version_0_1"
RUNS = ("learned", "shortgpt", "widths")


def content(run: str) -> dict[str, Any]:
    file = find_decision(FILES / run)
    assert file is not None and (file.name == "widths.json") == (run == "widths")
    return json.loads(file.read_text())


@pytest.mark.parametrize("run", RUNS)
def test_an_old_decision_cuts_its_source_as_it_did(run: str, tmp_path: Path) -> None:
    decision = Decision.load(find_decision(FILES / run))
    pruned, wanted = prune(load(FILES / "source"), decision), load(FILES / run / "pruned")
    assert pruned.config() == wanted.config() and pruned.kept_from == wanted.kept_from
    for name, value in pruned.state_dict().items():
        assert torch.equal(value, wanted.state_dict()[name]), name
    # Written again, it is one of today's.
    again = decision.save(tmp_path / decision.file_name)
    assert Decision.load(again) == decision
    assert json.loads(again.read_text())["format"] == "tinyfusion-decision"


@pytest.mark.parametrize("run", RUNS)
def test_nothing_that_it_held_is_lost(run: str) -> None:
    decision, values = Decision.load(find_decision(FILES / run)), content(run)
    same = ("method", "scores", "seed", "source_sha256", "config", "version")
    assert {key: getattr(decision, key) for key in same} == {key: values[key] for key in same}
    if run == "widths":
        assert decision.kept is None and decision.budget == {"ratio": values["ratio"]}
        resized = decision.resized
        assert {name: list(kept) for name, kept in resized.kept.items()} == values["kept"]
        assert resized.source_sizes == values["source_units"]
        same = ("widths", "source_widths", "parameters", "source_parameters")
        assert {key: getattr(resized, key) for key in same} == {key: values[key] for key in same}
    else:
        assert decision.resized is None
        assert (list(decision.kept), list(decision.dropped)) == (values["kept"], values["dropped"])
        same = ("source_depth", "scheme", "probabilities")
        assert {key: getattr(decision, key) for key in same} == {key: values[key] for key in same}


@pytest.mark.parametrize("run", RUNS)
def test_what_runs_recorded_of_it_is_what_they_would_record_now(run: str) -> None:
    decision = Decision.load(find_decision(FILES / run))
    told = json.loads((FILES / run / "metrics.json").read_text())["decision"]
    assert json.loads(json.dumps(decision.summary())) == told
    checkpoint = read_checkpoint(FILES / run / "pruned")
    known = lineage(checkpoint)
    assert known["decision"]["method"] == decision.method
    assert known["decision"]["source_sha256"] == decision.source_sha256
    card = model_card(load(FILES / run / "pruned"), known, "ours", "pruned")
    assert ("width-pruning" in card) == (run == "widths")
    assert f"**Method**: {decision.method}" in card


@pytest.mark.parametrize("run", RUNS)
def test_inspect_reads_old_decisions(run: str) -> None:
    text = report(examine(str(find_decision(FILES / run))))
    assert content(run)["method"] in text
    which = "channels" if run == "widths" else "blocks"
    assert f"a decision: which {which} of a model stay" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "lacks 'format': 'tinyfusion-decision'"),
        ({"format_version": 2}, "has format_version=2; this version of tinyfusion reads 1"),
        ({"surprise": 1}, "it has the unknown 'surprise'"),
        ({"ratio": -1}, "ratio=-1 must be at least 0"),
        ({"ratio": "half"}, "ratio='half' must be a number"),
        ({"widths": {"hidden_size": 3}}, "widths and source_widths must name the same arguments"),
        ({"kept": [0, 1]}, "must name the same groups"),
    ],
)
def test_damaged_files_of_widths_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = tmp_path / "widths.json"
    file.write_text(json.dumps(content("widths") | changes))
    with pytest.raises(InputError, match=message) as caught:
        Decision.load(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["ratio", "source_units", "kept", "parameters"])
def test_what_is_missing_in_them_is_named(tmp_path: Path, key: str) -> None:
    file = tmp_path / "widths.json"
    file.write_text(json.dumps({k: v for k, v in content("widths").items() if k != key}))
    with pytest.raises(InputError, match=f"not a valid decision: it lacks '{key}'"):
        Decision.load(file)


def test_the_old_name_of_the_record_names_the_new_one() -> None:
    with pytest.raises(AttributeError, match=r"part of tinyfusion\.Decision now"):
        _ = tinyfusion.WidthDecision
