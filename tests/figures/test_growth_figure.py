"""Panels of measured cost with the model behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures.growth import Curve, _apart, growth

CURVE = Curve((2, 4, 8), (1.0, 2.0, 4.1), (1.0, 2.0, 4.0), (False, False, True))


def test_a_row_per_figure_and_a_column_per_axis(tmp_path: Path) -> None:
    one = growth({"ms": {"depth": {"a": CURVE}}}, tmp_path / "one.png")
    more = {"depth": {"a": CURVE, "b": CURVE}, "width": {"a": CURVE}}
    two = growth({"ms": more, "MB": more}, tmp_path / "two.png", "title")
    with Image.open(one) as small, Image.open(two) as large:
        assert large.width > 1.5 * small.width and large.height > 1.5 * small.height
        assert large.convert("L").getextrema() != (255, 255)


def test_ticks_leave_room_for_their_labels() -> None:
    assert _apart([1, 2, 3, 4, 8, 9, 64]) == [1, 2, 4, 8, 64]


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        growth({"ms": {"depth": {}}}, tmp_path / "none.png")
    assert not list(tmp_path.iterdir())
