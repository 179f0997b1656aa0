"""Figure of measured speed-up by share of parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures.speed import speed_by_ratio


def test_draws_every_series(tmp_path: Path) -> None:
    points = [{"ratio": 0.5, "speed_up": 1.9, "label": "14"}, {"ratio": 0.9, "speed_up": 8.0}]
    both = speed_by_ratio({"depth": points, "width": points[:1]}, tmp_path / "both.png")
    one = speed_by_ratio({"depth": points, "width": []}, tmp_path / "one.png")
    assert Image.open(both).size[0] > 600
    assert both.read_bytes() != one.read_bytes()


def test_draws_the_spread_where_it_is_known(tmp_path: Path) -> None:
    points = [{"ratio": 0.5, "speed_up": 1.9}, {"ratio": 0.9, "speed_up": 8.0}]
    plain = speed_by_ratio({"depth": points}, tmp_path / "plain.png")
    spread = [{**points[0], "speed_up_q1": 1.7, "speed_up_q3": 2.1}, points[1]]
    barred = speed_by_ratio({"depth": spread}, tmp_path / "barred.png")
    assert plain.read_bytes() != barred.read_bytes()


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({"depth": []}, "no point to draw"),
        ({"depth": [{"ratio": 1.0, "speed_up": 2.0}]}, r"depth.*ratio=1\.0"),
        ({"depth": [{"ratio": 0.5, "speed_up": 0.0}]}, r"speed_up=0\.0"),
    ],
)
def test_what_can_not_be_drawn_is_refused(series: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        speed_by_ratio(series, tmp_path / "no.png")
