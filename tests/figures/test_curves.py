"""Curves over steps with their spread."""

from __future__ import annotations

import pytest

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import LOWER
from tinyfusion.figures.curves import curves
from tinyfusion.figures.looks import method_look

FIDS = {
    "masked KD": [[(300, 3.0), (600, 2.0)], [(300, 5.0), (600, 2.0), (900, 1.0)]],
    "fine-tuning": [[(300, 6.0), (600, 4.0)], [(300, 8.0), (600, 4.0)]],
}


def labelled(axes):
    return {line.get_label(): line for line in axes.lines}


def test_lines_are_means_over_the_steps_that_all_seeds_have(tmp_path, saved):
    curves(FIDS, tmp_path / "c.png", f"FID, {LOWER}", title="Figure 14")
    axes = saved[0].axes[0]
    lines = labelled(axes)
    assert list(lines) == list(FIDS)
    assert lines["masked KD"].get_xydata().tolist() == [[300, 4], [600, 2]]
    for name, line in lines.items():
        assert (line.get_color(), line.get_marker()) == method_look(name)
    # The band is a standard deviation to either side; where the seeds agree it has no height.
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(2.0) and band[:, 1].max() == pytest.approx(4 + 2**0.5)
    assert axes.get_yscale() == "log" and axes.get_ylabel() == "FID, lower is better ↓"
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert said[-1] == "mean ± standard deviation of 2 seeds"


def test_one_seed_has_no_band_and_numbers_of_seeds_are_said_where_they_differ(tmp_path, saved):
    curves({"kd": FIDS["masked KD"][:1]}, tmp_path / "a.png", "FID")
    curves(FIDS | {"from scratch": [[(300, 30.0)]], "empty": []}, tmp_path / "b.png", "FID")
    alone, several = (figure.axes[0] for figure in saved)
    assert not alone.collections and len(alone.get_legend().get_texts()) == 1
    assert list(labelled(several)) == [
        "masked KD (2 seeds)", "fine-tuning (2 seeds)", "from scratch (1 seed)",
    ]  # fmt: skip
    assert several.get_legend().get_texts()[-1].get_text().endswith("of the seeds")


def test_a_band_wider_than_its_mean_stays_above_zero(tmp_path, saved):
    curves({"kd": [[(1, 0.1), (2, 1.0)], [(1, 10.0), (2, 1.0)]]}, tmp_path / "a.png", "FID")
    assert saved[0].axes[0].collections[0].get_paths()[0].vertices[:, 1].min() > 0


def test_what_can_not_be_drawn_is_refused(tmp_path):
    for nothing in ({}, {"a": []}, {"a": [[]]}, {"a": [[(1, 1.0)], [(2, 1.0)]]}):
        with pytest.raises(InputError, match="no point to draw"):
            curves(nothing, tmp_path / "a.png", "FID")
    with pytest.raises(InputError, match=r"a has the value -1\.0.*above 0"):
        curves({"a": [[(1, -1.0)]]}, tmp_path / "a.png", "loss")
    assert not list(tmp_path.iterdir())
    curves({"a": [[(1, -1.0)]]}, tmp_path / "a.png", "loss", logarithmic=False)
