"""What decisions do with intervals and channels is checked when it is written down."""

from __future__ import annotations

from typing import Any

import pytest

from tinyfusion.changes import Replacement, Resizing
from tinyfusion.errors import InputError


def values(**changes: Any) -> dict[str, Any]:
    return {
        "kept": {"residual": (0, 2, 3), "heads": (1,)},
        "source_sizes": {"residual": 4, "heads": 2},
        "widths": {"hidden_size": 3, "num_heads": 1},
        "source_widths": {"hidden_size": 4, "num_heads": 2},
        "parameters": 60,
        "source_parameters": 100,
        **changes,
    }


def test_says_what_goes_in_words_and_numbers() -> None:
    resized = Resizing(**values())
    assert resized.reached == pytest.approx(0.4)
    assert resized.summary()["widths"] == {"hidden_size": 3, "num_heads": 1}
    assert resized.description == (
        "hidden_size 4 -> 3, num_heads 2 -> 1; 60 of 100 parameters (40.0 % removed)"
    )


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
        ({"parameters": 0}, "^parameters=0 must be a positive integer"),
        ({"source_parameters": "all"}, "^source_parameters='all' must be a positive integer"),
    ],
)
def test_channels_that_contradict_each_other_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Resizing(**values(**changes))


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ((2, 3, 2), "at least two blocks is replaced; valid: a stop of 4 or more"),
        ((2, 5, 5), r"block 5 is not in the interval; valid: 2\.\.4"),
        ((-1, 3, 0), "must be block indices"),
        ((0, 3, True), "must be block indices"),
    ],
)
def test_intervals_that_are_none_are_refused(interval: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Replacement(*interval)
