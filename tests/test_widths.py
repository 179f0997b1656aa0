"""The record of a width decision stands alone and is checked when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.widths import WidthDecision, read_decision


def values(**changes: Any) -> dict[str, Any]:
    return {
        "kept": {"residual": (0, 2, 3), "heads": (1,)},
        "source_units": {"residual": 4, "heads": 2},
        "widths": {"hidden_size": 3, "num_heads": 1},
        "source_widths": {"hidden_size": 4, "num_heads": 2},
        "parameters": 60,
        "source_parameters": 100,
        "ratio": 0.4,
        **changes,
    }


def test_comes_back_as_it_was_written(tmp_path: Path) -> None:
    decision = WidthDecision(**values(), method="m", scores={"losses": [1.0]}, seed=3)
    file = decision.save(tmp_path / decision.file_name)
    assert read_decision(file) == decision
    assert decision.reached == pytest.approx(0.4)
    assert decision.summary()["widths"] == {"hidden_size": 3, "num_heads": 1}
    assert "hidden_size 4 -> 3" in decision.shown


def test_a_decision_of_blocks_is_read_by_the_same_function(tmp_path: Path) -> None:
    decision = Decision((0, 1), 3)
    assert read_decision(decision.save(tmp_path / "any.json")) == decision


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept": {"residual": (0, 2, 4), "heads": (1,)}}, r"kept\[residual\].*0\.\.3"),
        ({"kept": {"residual": (0, 0, 1), "heads": (1,)}}, "does not ascend"),
        ({"kept": {"residual": (), "heads": (1,)}}, "at least one"),
        ({"kept": {"residual": (0, True), "heads": (1,)}}, r"kept\[residual\]"),
        ({"kept": {"residual": (0,)}}, "same groups"),
        ({"widths": {"hidden_size": 3}}, "same arguments"),
        ({"widths": {"hidden_size": 0, "num_heads": 1}}, "positive integer"),
        ({"ratio": 1.0}, "below 1"),
        ({"ratio": "half"}, "must be a number"),
        ({"parameters": 0}, "^parameters=0 must be a positive integer"),
        ({"source_parameters": "all"}, "^source_parameters='all' must be a positive integer"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WidthDecision(**values(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "'other'; valid: 'tinyfusion-decision', 'tinyfusion-widths'"),
        ({"format_version": 2}, "format_version=2"),
        ({"surprise": 1}, "surprise"),
        ({"ratio": -1}, "at least 0"),
    ],
)
def test_files_that_are_no_width_decision_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = tmp_path / "widths.json"
    file.write_text(json.dumps(WidthDecision(**values()).to_dict() | changes))
    with pytest.raises(InputError, match=message):
        read_decision(file)
