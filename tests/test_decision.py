"""Decisions stand alone, and contradictory ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinyfusion.changes import Replacement, Resizing
from tinyfusion.decision import Decision, find_decision
from tinyfusion.decision_files import FORMAT
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


def of_all_kinds(**changes: Any) -> Decision:
    """Two blocks stay, one of them without its MLP, three become one, and channels go."""
    resized = Resizing(
        {"residual": (0, 2)}, {"residual": 3}, {"hidden_size": 2}, {"hidden_size": 3}, 60, 100
    )
    values = {
        "kept": (0, 5),
        "source_depth": 6,
        "removed": ("blocks.5.mlp",),
        "replaced": (Replacement(2, 5, 3),),
        "resized": resized,
        "budget": {"parameters": 0.5},
    }
    return Decision(**values | changes)


def test_units_of_all_kinds_are_in_one_record(tmp_path: Path) -> None:
    decision = of_all_kinds()
    assert decision.dropped == (1,)
    assert decision.origins == (0, 3, 5)
    path = decision.save(tmp_path / decision.file_name)
    assert Decision.load(path) == decision
    assert decision.description == (
        "[0, 5], without blocks.5.mlp; block 3 for 2..4; "
        "hidden_size 3 -> 2; 60 of 100 parameters (40.0 % removed)"
    )
    summary = decision.summary()
    assert summary["kept"] == [0, 5] and summary["removed"] == ["blocks.5.mlp"]
    assert summary["replaced"] == [{"start": 2, "stop": 5, "block": 3}]
    assert summary["widths"] == {"hidden_size": 2} and summary["ratio"] is None


def test_a_decision_may_leave_all_blocks_where_they_are() -> None:
    decision = of_all_kinds(kept=None, source_depth=None, replaced=())
    assert not decision.is_about_blocks and decision.dropped == ()
    assert "kept" not in decision.summary()
    assert Decision.from_dict(decision.to_dict()) == decision
    with pytest.raises(AssertionError, match="all blocks stay"):
        _ = decision.origins


def test_outside_the_intervals_all_blocks_stay_unless_it_is_said_which() -> None:
    decision = of_all_kinds(kept=None)
    assert decision.kept == (0, 1, 5) and decision.origins == (0, 1, 3, 5)
    nothing_else = Decision((), 4, replaced=(Replacement(0, 4, 2),))
    assert nothing_else.origins == (2,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept": [0, 3, 5]}, "block 3 is in an interval that is replaced"),
        ({"replaced": [{"start": 2, "stop": 7, "block": 3}]}, "ends behind block 5, the last"),
        (
            {
                "replaced": [
                    {"start": 2, "stop": 5, "block": 3},
                    {"start": 4, "stop": 6, "block": 4},
                ]
            },
            r"the interval 4\.\.5 overlaps another",
        ),
        ({"replaced": [{"start": 2, "stop": 5}]}, "not a valid replacement: it lacks 'block'"),
        ({"replaced": {"start": 2}}, r"replaced=\{'start': 2\} must be a list"),
        ({"replaced": [3]}, "a replacement must be a dictionary, not 3"),
        ({"resized": [1]}, "a resizing must be a dictionary"),
        ({"resized": {"kept": {}}}, "not a valid resizing: it lacks 'source_sizes'"),
        ({"removed": ["blocks.5"]}, "'blocks.5' is the name of no branch"),
        ({"removed": ["residual"]}, "'residual' is the name of no branch"),
        ({"removed": ["blocks.2:4.mlp"]}, "'blocks.2:4.mlp' is the name of no branch"),
        ({"removed": ["blocks.5.mlp"] * 2}, "'blocks.5.mlp' is listed more than once"),
        ({"removed": "blocks.5.mlp"}, "must be a list of names of branches"),
        ({"removed": 5}, "not a valid decision"),
        ({"budget": [14]}, r"budget=\[14\] must be a dictionary of limits by name"),
        ({"budget": {"ratio": 1.0}}, "ratio=1.0 must be at least 0 and below 1"),
        ({"budget": {"ratio": "half"}}, "ratio='half' must be a number"),
        ({"dropped": [2]}, r"dropped=\[2\] contradicts kept=\[0, 5\] of 6 blocks"),
        ({"source_depth": None, "kept": None}, "source_depth is missing"),
    ],
)
def test_changes_that_contradict_each_other_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(of_all_kinds().to_dict() | changes))
    with pytest.raises(InputError, match=message) as caught:
        Decision.load(path)
    assert str(path) in str(caught.value)


def test_a_scheme_needs_blocks_and_a_decision_something_to_decide() -> None:
    with pytest.raises(InputError, match="nothing is decided: give kept, removed, replaced or"):
        Decision()
    with pytest.raises(InputError, match="lies over blocks, but no block goes"):
        of_all_kinds(kept=None, source_depth=None, replaced=(), scheme=[[1, 2]])


def test_the_decision_of_a_run_is_found_under_its_old_name_too(tmp_path: Path) -> None:
    assert find_decision(tmp_path) is None
    (tmp_path / "widths.json").write_text("{}")
    assert find_decision(tmp_path) == tmp_path / "widths.json"
    (tmp_path / "decision.json").write_text("{}")
    assert find_decision(tmp_path) == tmp_path / "decision.json"


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
        ({"source_depth": "4"}, "source_depth='4' must be a positive integer"),
        ({"source_depth": None}, "source_depth is missing"),
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
