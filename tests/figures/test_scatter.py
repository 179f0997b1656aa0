from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures.scatter import Point, scatter


@pytest.fixture
def texts(monkeypatch):
    """Texts and boxes of all labels at the moment the figure is written."""
    found = []

    def remember(figure, path, *_):
        renderer = figure.canvas.get_renderer()
        for axes in figure.axes:
            boxes = {t.get_text(): Text.get_window_extent(t, renderer) for t in axes.texts}
            found.append((axes, boxes))
        return path

    monkeypatch.setattr("tinyfusion.figures.scatter.save_figure", remember)
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
    assert (0, 114, 178) in colours


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


def test_labels_stand_nearer_to_their_own_point(texts, tmp_path):
    places = [
        *((0.2985, 1.497), (0.2791, 1.207), (0.2557, 1.114), (0.3490, 0.846), (0.2724, 0.878)),
        *((0.3291, 0.817), (0.2060, 1.179), (0.4272, 1.646), (0.4321, 1.477), (0.3401, 0.837)),
        *((0.9055, 19.1), (0.8134, 2.948), (0.2035, 1.255), (0.5572, 1.446), (2.84, 12.9)),
    ]
    points = [Point(f"pruner {x:g}", x, y) for x, y in places]
    scatter({"panel": points}, tmp_path / "s.png", "loss", "FID")
    ((axes, boxes),) = texts
    near = 0
    for point in points:
        places = {p.label: axes.transData.transform((p.x, p.y)) for p in points}
        box = boxes[point.label]
        distances = {
            label: math.dist(place, np.clip(place, [box.x0, box.y0], [box.x1, box.y1]))
            for label, place in places.items()
        }
        near += min(distances, key=distances.get) == point.label
    assert near >= 14, "two points that nearly touch leave room for one label"


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(InputError, match="no point"):
        scatter({"a": [Point("x", math.inf, 1.0)]}, tmp_path / "s.png", "loss", "FID")
