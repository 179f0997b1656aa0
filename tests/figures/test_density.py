from __future__ import annotations

import warnings
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures import density
from tinyfusion.figures.canvas import GREY
from tinyfusion.figures.density import density_of, loss_density
from tinyfusion.figures.looks import looks

MARKS = {"Oracle": 1.28, "Learnable": 0.98, "ShortGPT": 0.2, "Sensitivity": 0.21, "Flux": 0.85}


def candidates(count: int) -> np.ndarray:
    return np.exp(np.random.default_rng(0).normal(0, 0.8, count))


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def columns(page: np.ndarray, colour: str) -> np.ndarray:
    """Columns with at least an inch of a colour: those of upright lines."""
    alike = abs(page - 255 * np.array(to_rgb(colour))).max(axis=-1) <= 2
    return np.flatnonzero(alike.sum(axis=0) > 200)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_marks_stand_at_their_places_on_a_logarithmic_axis(tmp_path):
    losses = np.concatenate([candidates(5000).clip(0.2, 20), [0.1, 100.0]])
    page = pixels(
        loss_density(losses, tmp_path / "d.png", {"learned": 1.0, "shortgpt": 10.0}, "title")
    )
    assert page.shape[1] == 1280
    # Three decades, from 0.1 to 100: a and b stand at a third and two thirds.
    (a,), (b,) = (
        np.unique(columns(page, look.colour).mean().round())
        for look in looks(["learned", "shortgpt"]).values()
    )
    grey = abs(page - 255 * np.array(to_rgb(GREY))).max(axis=-1) <= 2
    dotted = np.flatnonzero(grey.sum(axis=0) > 100)
    assert (dotted.max() - dotted.min()) / 3 == pytest.approx(b - a, abs=3)
    assert a - dotted.min() == pytest.approx(b - a, abs=3)


def test_lines_say_least_middle_and_largest_loss_and_marks():
    lines = density._lines(np.array([0.1, 0.2, 0.3, 0.5]), {"mine": 0.25})
    assert [line.label for line in lines] == ["max 0.5", "median 0.3", "mine 0.25", "min 0.1"]


def test_the_bulk_is_high_and_the_tail_is_low(tmp_path):
    page = pixels(loss_density(candidates(5000), tmp_path / "d.png"))
    filled = (abs(page - 0xD4).max(axis=-1) <= 2).sum(axis=0)
    peak = filled.argmax()
    assert filled[peak] > 350 and 300 < peak < 900
    assert filled[-100:].max() < 40


def test_labels_overlap_neither_each_other_nor_lines(tmp_path, monkeypatch):
    placed = []
    plain = density._rows

    def rows(places, widths):
        found = plain(places, widths)
        placed.append(list(zip(places, widths, found, strict=True)))
        return found

    monkeypatch.setattr(density, "_rows", rows)
    ten = {f"a pruner of long name {i}": 0.9 + 0.01 * i for i in range(10)}
    for marks in (MARKS, ten, {"same": 1.0, "place": 1.0}):
        loss_density(candidates(300), tmp_path / "d.png", marks)
    for lines in placed:
        assert all(place + width <= density.WIDTH for place, width, _ in lines), "fits the page"
        for (right, _, above), (left, width, row) in combinations(lines, 2):
            if left + width > right:
                assert row > above, "a label over another line stands above that line's end"
    assert len(placed[1]) == 13


@pytest.mark.parametrize("count", [2, 3, 40, 20_000])
def test_the_density_ends_at_the_least_and_the_largest_loss(count):
    losses = np.sort(candidates(count))
    places, density = density_of(losses)
    assert places[0] == pytest.approx(losses[0]) and places[-1] == pytest.approx(losses[-1])
    assert (np.diff(places) > 0).all() and (density >= 0).all()
    # Nothing is lost beyond the ends: shares per decade add up to 1.
    assert np.trapezoid(density, np.log10(places)) == pytest.approx(1, abs=0.01)


def test_nothing_of_the_curve_is_drawn_beyond_the_losses(tmp_path, saved):
    losses = candidates(500)
    loss_density(losses, tmp_path / "d.png", {"a": 0.01, "b": 500.0})
    axes = saved[0].axes[0]
    curve = max(axes.lines, key=lambda line: len(line.get_xdata()))
    low, high = axes.collections[0].get_datalim(axes.transData).intervalx
    for ends in ((curve.get_xdata().min(), curve.get_xdata().max()), (low, high)):
        assert ends == pytest.approx((losses.min(), losses.max()))


@pytest.mark.parametrize("marks", [{"learned": 1.0, "oracle": 1.0}, {"learned": 1.0, "zd": 1.0005}])
def test_marks_in_one_place_are_both_seen(tmp_path, marks):
    page = pixels(loss_density(candidates(300), tmp_path / "d.png", marks))
    found = []
    for look in looks(marks).values():
        alike = abs(page - 255 * np.array(to_rgb(look.colour))).max(axis=-1) <= 2
        rows, across = np.nonzero(alike)
        # Half of a line of 2.2 inches, at least, and the marker at its end.
        own = across == np.bincount(across).argmax()
        assert 150 < own.sum() < 330
        found.append(set(rows[own]))
    assert np.ptp(sorted(found[0])) > 400 and np.ptp(sorted(found[1])) > 400


def test_few_candidates_are_shown_one_by_one_and_equal_ones_are_drawn(tmp_path):
    for losses in ([0.5, 0.5], [0.5] * 300, [1.0, 1.0 + 1e-6, 1.1], [3.0], candidates(40)):
        assert pixels(loss_density(losses, tmp_path / "d.png", {"a": 2.0})).shape[1] == 1280


def test_what_can_not_be_drawn_is_said(tmp_path, monkeypatch):
    said = []
    plain = density.save_figure
    monkeypatch.setattr(
        density,
        "save_figure",
        lambda figure, path: said.append(figure.axes[0].get_xlabel()) or plain(figure, path),
    )
    losses = [0.5, 0.7, float("nan"), float("inf"), -1.0]
    loss_density(losses, tmp_path / "d.png", {"good": 0.6, "bad": float("nan")})
    assert said == ["calibration loss (logarithmic axis, 3 not finite, bad: not finite)"]
    with pytest.raises(InputError, match="no finite, positive loss"):
        loss_density(losses[2:], tmp_path / "d.png")


def test_same_losses_give_the_same_bytes(tmp_path):
    first = loss_density(candidates(50), tmp_path / "a.png", MARKS).read_bytes()
    assert loss_density(candidates(50), tmp_path / "b.png", MARKS).read_bytes() == first
