"""Amounts as people read them."""

from __future__ import annotations

import pytest

from tinyfusion.text import readable_amount, readable_bytes, readable_duration


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (2**30, "1.00 GiB"),
        (int(1.5 * 2**30), "1.50 GiB"),
        (2**30 - 2**20, "1023.00 MiB"),
        (2**20, "1.00 MiB"),
        (12_345, "12.06 KiB"),
        (0, "0.00 KiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert readable_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.4, "59 s"), (59.6, "1 min 00 s"), (24_960, "6 h 56 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert readable_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0125, "0.0125"), (31, "31"), (2_461_290.4, "2,461,290"), (6e7, "60,000,000")],
)
def test_amounts(value: float, text: str) -> None:
    assert readable_amount(value) == text
