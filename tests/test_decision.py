"""Decisions stand alone, and contradictory ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyfusion.decision import FORMAT, Decision
from tinyfusion.errors import InputError
from tinyfusion.version import __version__


@pytest.fixture
def decision() -> Decision:
    return Decision(
        kept=(0, 3),
        source_depth=4,
        method="learned",
        scheme=[[1, 2], [1, 2]],
        probabilities=[[0.9, 0.1], [0.25, 0.75]],
        scores={"kept_live": [0, 2]},
        seed=3,
        source_sha256="ab",
        config={"scheme": "1:2"},
    )


def test_round_trip(decision: Decision, tmp_path: Path) -> None:
    path = decision.save(tmp_path / "decision.json")
    assert Decision.load(path) == decision
    written = json.loads(path.read_text())
    assert written["format"] == FORMAT
    assert (written["kept"], written["dropped"]) == ([0, 3], [1, 2])
    assert written["version"] == __version__
    assert [path.name for path in tmp_path.iterdir()] == ["decision.json"]


def test_indices_are_sorted_and_dropped_is_the_rest() -> None:
    decision = Decision(kept=[5, 1], source_depth=6)
    assert decision.kept == (1, 5)
    assert decision.dropped == (0, 2, 3, 4)
    assert decision.groups is None


def test_groups_are_laid_over_the_source(decision: Decision) -> None:
    assert decision.groups is not None
    assert [list(group.blocks) for group in decision.groups.groups] == [[0, 1], [2, 3]]


def test_a_file_written_by_hand_needs_little(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"format": FORMAT, "kept": [2, 0], "source_depth": 4}))
    assert Decision.load(path).kept == (0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept": []}, "keeps no block"),
        ({"kept": [0, 4]}, r"kept=\[0,4\]: block 4 does not exist; the model has blocks 0\.\.3"),
        ({"kept": [-1, 3]}, "block -1 does not exist"),
        ({"kept": [0, 0]}, "block 0 is listed more than once"),
        ({"kept": [0, 1.0]}, "1.0 is not a block index"),
        ({"kept": [0, True]}, "True is not a block index"),
        ({"kept": "03"}, "'0' is not a block index"),
        ({"kept": 3}, "not a valid decision"),
        ({"source_depth": "4"}, "not a valid decision"),
        ({"source_depth": None}, "not a valid decision"),
        ({"source_depth": 6}, "covers 4 blocks but the model has 6"),
        ({"scheme": [[3, 4]], "probabilities": None}, "2 blocks of 0..3 stay.*keeps 3 there"),
        ({"kept": [0, 1], "dropped": [2, 3]}, "2 blocks of 0..1 stay, but scheme=1:2 keeps 1"),
        ({"probabilities": [[0.5, 0.5]]}, r"probabilities of \[2\] patterns"),
        ({"dropped": [1, 3]}, r"dropped=\[1, 3\] contradicts kept=\[0, 3\] of 4 blocks"),
        ({"colour": "red"}, "it has the unknown 'colour'"),
        ({"format": "other"}, "lacks 'format': 'tinyfusion-decision'"),
    ],
)
def test_wrong_files_are_refused_by_name(
    decision: Decision, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(decision.to_dict() | changes))
    with pytest.raises(InputError, match=message) as caught:
        Decision.load(path)
    assert str(path) in str(caught.value)


def test_what_is_no_decision_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(InputError, match=r"decision file .* does not exist"):
        Decision.load(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Decision.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match="is not a decision"):
        Decision.load(path)
    path.write_text(json.dumps({"format": FORMAT, "kept": [0]}))
    with pytest.raises(InputError, match="it lacks 'source_depth'"):
        Decision.load(path)
