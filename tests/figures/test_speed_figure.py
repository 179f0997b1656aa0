"""Figure of measured speed-up by share of parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures.speed import printed_speed, speed_by_ratio
from tinyfusion.report.paper import paper_figure


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


def test_the_legend_explains_bars_and_the_papers_marks(tmp_path: Path, saved: list) -> None:
    points = [{"ratio": 0.5, "speed_up": 1.9}]
    bars = [{**points[0], "speed_up_q1": 1.7, "speed_up_q3": 2.1}]
    printed = printed_speed(paper_figure(4))
    speed_by_ratio({"depth pruning": points}, tmp_path / "plain.png")
    speed_by_ratio({"depth pruning": bars}, tmp_path / "full.png", printed=printed)
    plain, full = (
        [text.get_text() for text in figure.axes[0].get_legend().get_texts()] for figure in saved
    )
    assert not any("quartile" in text or "paper" in text for text in plain)
    assert "bar: first to third quartile of the rounds" in full
    assert "depth pruning, paper" in full and "width pruning, paper (shares guessed)" in full
    by_name = {line.get_label(): line for line in saved[1].axes[0].lines}
    mark, own = by_name["depth pruning, paper"], by_name["depth pruning"]
    assert mark.get_color() == own.get_color() and mark.get_alpha() < 0.6
    depth = dict(zip(mark.get_xdata().round(4), mark.get_ydata(), strict=True))
    assert len(depth) == 13 and depth[0.5] == 1.99 and depth[0.9286] == 11.6


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
