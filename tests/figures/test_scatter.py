from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures import labels as labels_module
from tinyfusion.figures.labels import Labels, crossings
from tinyfusion.figures.looks import looks
from tinyfusion.figures.scatter import Point, scatter

# Table "Pruners" of docs/results.md: loss right after the cut, FID after kd and its spread.
PRUNERS = {
    "sensitivity": (0.3291, 0.819, 0.037),
    "laptop_diff": (0.3291, 0.819, 0.037),
    "shortgpt": (0.3490, 0.848, 0.028),
    "first": (0.3401, 0.849, 0.033),
    "flux_lite": (0.2724, 0.855, 0.035),
    "diff_pruning, 25 %": (0.3678, 0.968, 0.030),
    "learned 7:14": (0.2613, 1.111, 0.047),
    "learned 2:4": (0.2822, 1.161, 0.115),
    "sensitivity, greedy": (0.2060, 1.179, 0.057),
    "random, least loss": (0.2035, 1.231, 0.006),
    "uniform": (0.4321, 1.483, 0.033),
    "random, median loss": (0.5572, 1.532, 0.032),
    "learned 1:2": (0.2911, 1.548, 0.058),
    "oracle": (0.4272, 1.640, 0.029),
    "diff_pruning, 50 %": (0.5686, 1.882, 0.163),
    "random": (0.8134, 3.301, 2.169),
    "random, most loss": (2.8415, 12.958, 0.850),
    "diff_pruning, 75 %": (0.8659, 17.825, 1.333),
    "last": (0.9055, 19.097, 0.256),
}
MASKED = {
    "sensitivity": (0.3291, 0.866, 0.031),
    "laptop_diff": (0.3291, 0.866, 0.031),
    "shortgpt": (0.3490, 0.877, 0.027),
    "first": (0.3401, 0.887, 0.022),
    "flux_lite": (0.2724, 0.898, 0.034),
    "learned 7:14": (0.2613, 1.027, 0.032),
    "learned 2:4": (0.2822, 1.126, 0.098),
    "sensitivity, greedy": (0.2060, 1.135, 0.056),
    "random, least loss": (0.2035, 1.176, 0.022),
    "uniform": (0.4321, 1.369, 0.033),
    "random, median loss": (0.5572, 1.427, 0.013),
    "learned 1:2": (0.2911, 1.350, 0.061),
    "oracle": (0.4272, 1.495, 0.015),
    "random": (0.8134, 1.955, 0.328),
    "random, most loss": (2.8415, 3.228, 0.085),
    "last": (0.9055, 14.182, 0.411),
}


def hex_rgb(colour: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(colour))


@pytest.fixture
def texts(monkeypatch):
    """Texts and boxes of all labels at the moment the figure is written."""
    found = []

    def remember(figure, path, *_):
        renderer = figure.canvas.get_renderer()
        for axes in figure.axes:
            boxes = {}
            for text in filter(Text.get_text, axes.texts):
                text.update_positions(renderer)
                boxes[text.get_text()] = Text.get_window_extent(text, renderer)
            found.append((axes, boxes))
        return path

    monkeypatch.setattr("tinyfusion.figures.scatter.save_figure", remember)
    return found


@pytest.fixture
def placed(monkeypatch):
    """Labels, points and frame of every panel."""
    found = []

    def remember(sizes, points, frame, bars, radius):
        labels = labels_module.place_labels(sizes, points, frame, bars, radius)
        found.append((labels, points, frame))
        return labels

    monkeypatch.setattr("tinyfusion.figures.scatter.place_labels", remember)
    return found


def test_a_picture_with_a_panel_for_each_kind(tmp_path):
    panels = {
        "recovery=kd": [Point("one", 0.2, 1.0, 0.1), Point("two", 30.0, 9.0, 12.0)],
        "recovery=masked_kd": [Point("one", 0.2, 0.9), Point("lost", 1.0, float("nan"))],
        "nothing": [Point("none", 0.0, 1.0)],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = scatter(panels, tmp_path / "s.png", "loss", "FID")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == (2 * 860, 780)
        colours = {tuple(c) for c in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    assert {hex_rgb(look.colour) for look in looks(["one", "two"]).values()} <= colours


def test_labels_cover_neither_each_other_nor_points(texts, tmp_path):
    draws = np.random.default_rng(0)
    names = [f"pruner number {i}" for i in range(16)]
    values = np.exp(draws.normal(size=(16, 2)) * 0.5)
    points = [Point(name, x, y, 0.1 * y) for name, (x, y) in zip(names, values, strict=True)]
    scatter({"panel": points}, tmp_path / "s.png", "loss", "FID")
    ((axes, boxes),) = texts
    assert isinstance(axes, Axes) and sorted(boxes) == sorted(names)
    listed = list(boxes.values())
    for index, box in enumerate(listed):
        assert not any(box.overlaps(other) for other in listed[:index])
        assert not any(box.contains(*axes.transData.transform((p.x, p.y))) for p in points)
    # Each stands nearest to its own point, or at least not far from it.
    for point in points:
        box, place = boxes[point.label], axes.transData.transform((point.x, point.y))
        nearest = np.clip(place, [box.x0, box.y0], [box.x1, box.y1])
        assert math.dist(place, nearest) < 60


@pytest.mark.parametrize("panels", [(PRUNERS,), (PRUNERS, MASKED)])
def test_no_line_of_the_study_of_pruners_crosses_a_label(placed, texts, tmp_path, panels):
    points = {
        str(number): [Point(name, *values) for name, values in panel.items()]
        for number, panel in enumerate(panels)
    }
    scatter(points, tmp_path / "s.png", "loss", "FID")
    for panel, (labels, marks, frame), (_, boxes) in zip(panels, placed, texts, strict=True):
        assert crossings(labels) == 0
        assert len(boxes) == len(panel) - 1, "two pruners chose the same blocks"
        # Words beside each other do not run together either.
        apart = labels.boxes_N4 + np.array([-4, 0, 4, 0])
        shared = labels_module._overlap(labels.boxes_N4, apart)
        assert shared[~np.eye(len(shared), dtype=bool)].sum() == 0
        dots = np.concatenate([marks - 3, marks + 3], axis=1)
        assert labels_module._overlap(labels.boxes_N4, dots).sum() == 0
        cut = labels_module._cuts(labels.leaders_N4, dots) & labels.far_N[:, None]
        assert not cut[~np.eye(len(marks), dtype=bool)].any(), "a line goes through another mark"
        assert (labels.boxes_N4[:, :2] >= frame[:2]).all()
        assert (labels.boxes_N4[:, 2:] <= frame[2:]).all()
        # What is drawn lies in the boxes that were placed, so that this holds for the picture.
        centre = (labels.boxes_N4[:, :2] + labels.boxes_N4[:, 2:]) / 2
        for text in boxes.values():
            middle = [(text.x0 + text.x1) / 2, (text.y0 + text.y1) / 2]
            assert np.linalg.norm(centre - middle, axis=1).min() < 1.5


def test_a_crossing_is_counted():
    boxes = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    leaders = np.array([[10.0, 5, 60, 5], [25, 10, 25, 30], [45, 10, 45, 30]])
    far = np.array([True, True, False])
    assert crossings(Labels(boxes, leaders, far)) == 2, "through both other labels"
    crossed = np.array([[5.0, 10, 50, 30], [25, 10, 5, 30], [45, 10, 46, 11]])
    assert crossings(Labels(boxes, crossed, far)) == 2, "the two lines, counted from both"


def test_points_in_one_place_share_a_label(texts, tmp_path):
    points = [Point("first", 1.0, 1.0), Point("second", 2.0, 2.0), Point("third", 1.0, 1.0)]
    scatter({"panel": points}, tmp_path / "few.png", "loss", "FID")
    ((_, boxes),) = texts
    assert sorted(boxes) == ["first, third", "second"]


def test_many_points_get_more_room(tmp_path):
    sizes = []
    for count in (10, 11):
        points = [Point(str(i), 1.0 + i, 1.0 + i) for i in range(count)]
        with Image.open(scatter({"panel": points}, tmp_path / "s.png", "loss", "FID")) as image:
            sizes.append(image.size)
    assert sizes[0] == (860, 780) and sizes[1][0] > 860 and sizes[1][1] > 780


def test_labels_stand_nearer_to_their_own_point_or_have_a_line(placed, texts, tmp_path):
    places = [
        *((0.2985, 1.497), (0.2791, 1.207), (0.2557, 1.114), (0.3490, 0.846), (0.2724, 0.878)),
        *((0.3291, 0.817), (0.2060, 1.179), (0.4272, 1.646), (0.4321, 1.477), (0.3401, 0.837)),
        *((0.9055, 19.1), (0.8134, 2.948), (0.2035, 1.255), (0.5572, 1.446), (2.84, 12.9)),
    ]
    points = [Point(f"pruner {x:g}", x, y) for x, y in places]
    scatter({"panel": points}, tmp_path / "s.png", "loss", "FID")
    ((axes, boxes),) = texts
    (labels, *_), near = placed[0], 0
    for point, far in zip(points, labels.far_N, strict=True):
        places = {p.label: axes.transData.transform((p.x, p.y)) for p in points}
        box = boxes[point.label]
        distances = {
            label: math.dist(place, np.clip(place, [box.x0, box.y0], [box.x1, box.y1]))
            for label, place in places.items()
        }
        near += min(distances, key=distances.get) == point.label or far
    assert near >= 14, "two points that nearly touch leave room for one label"


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(InputError, match="no point"):
        scatter({"a": [Point("x", math.inf, 1.0)]}, tmp_path / "s.png", "loss", "FID")
