from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import COLOURS
from tinyfusion.figures.decision import DecisionRecord, decision_trace

GROUPS = [(0, 1), (2, 3)]
TRACE = [DecisionRecord(0, (0, 3), (0.5, 0.5)), DecisionRecord(10, (0, 2), (1.0, 0.7))]


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def count(page: np.ndarray, colour) -> int:
    return (abs(page - 255 * np.array(colour)).max(axis=-1) <= 1).sum()


def test_figure_shows_confidence_as_opacity_and_the_final_decision(tmp_path):
    page = pixels(decision_trace(TRACE, GROUPS, tmp_path / "trace.png", "1:2"))
    assert 1000 <= page.shape[1] <= 2000 and 300 <= page.shape[0] <= 2000
    blue = np.array(to_rgb(COLOURS[0]))
    # One block and half of the steps are drawn at full confidence, two at 0.5.
    full, half = count(page, blue), count(page, 1 - 0.55 * (1 - blue))
    assert full > 5000
    assert half == pytest.approx(2 * full, rel=0.1)
    assert count(page, to_rgb(COLOURS[1])) > 100


def test_final_decision_may_differ_from_the_last_record(tmp_path):
    orange = to_rgb(COLOURS[1])
    two = count(pixels(decision_trace(TRACE, GROUPS, tmp_path / "a.png")), orange)
    all_ = pixels(decision_trace(TRACE, GROUPS, tmp_path / "b.png", kept=[0, 1, 2, 3]))
    assert count(all_, orange) > 1.3 * two


def test_deep_models_get_taller_figures_and_single_records_work(tmp_path):
    small = pixels(decision_trace(TRACE[:1], GROUPS, tmp_path / "small.png"))
    deep = [tuple(range(4 * g, 4 * g + 4)) for g in range(7)]
    record = DecisionRecord(0, tuple(range(0, 28, 2)), (0.2,) * 7)
    large = pixels(decision_trace([record], deep, tmp_path / "deep.png"))
    assert large.shape[0] > 1.5 * small.shape[0]


@pytest.mark.parametrize(
    ("trace", "groups", "said"),
    [
        ([], GROUPS, "no record"),
        (TRACE, [(0, 1), (3, 2)], "cover blocks 0, 1"),
        (TRACE, [], "cover blocks 0, 1"),
        (TRACE[::-1], GROUPS, "strictly increasing"),
        ([DecisionRecord(0, (0,), (0.5,))], GROUPS, "2 confidences"),
        ([DecisionRecord(0, (0,), (0.5, 1.5))], GROUPS, "0..1"),
        ([DecisionRecord(0, (0, 4), (0.5, 0.5))], GROUPS, "beyond 0..3"),
    ],
)
def test_records_that_do_not_fit_are_refused(trace, groups, said, tmp_path):
    with pytest.raises(InputError, match=said):
        decision_trace(trace, groups, tmp_path / "trace.png")
    assert not list(tmp_path.iterdir())


def test_kept_blocks_beyond_the_model_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"kept=\[0, 9\]"):
        decision_trace(TRACE, GROUPS, tmp_path / "trace.png", kept=[0, 9])
