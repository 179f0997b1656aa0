"""The forms of a figure, and looks of methods."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tinyfusion.figures.canvas import (
    COLOURS,
    FORMS,
    PNG_ONLY,
    low_end,
    new_figure,
    save_figure,
    styled,
)
from tinyfusion.figures.curves import curves
from tinyfusion.figures.decision import DecisionRecord, decision_panels, decision_trace
from tinyfusion.figures.density import loss_density
from tinyfusion.figures.looks import looks, method_colour, method_look
from tinyfusion.figures.scatter import Point, scatter
from tinyfusion.figures.speed import speed_by_ratio


@styled
def picture(path, name="x$y", forms=FORMS):
    figure, axes = new_figure(3, 2)
    axes.plot([1, 2, 3], label=name)
    axes.pcolormesh(np.random.default_rng(0).random((80, 80)), rasterized=True)
    axes.legend()
    return save_figure(figure, path, forms=forms)


def test_three_forms_of_the_same_bytes_with_fonts_inside(tmp_path):
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "b" / "b.png")
    for form in FORMS:
        content = first.with_suffix(f".{form}").read_bytes()
        assert content == second.with_suffix(f".{form}").read_bytes()
        assert b"atplotlib v" not in content and b"<dc:date>" not in content
    with Image.open(first) as image:
        assert image.size == (600, 400)
    page = first.with_suffix(".pdf").read_bytes()
    assert page.startswith(b"%PDF") and b"CreationDate" not in page
    assert b"/FontFile2" in page and b"/Type3" not in page, "TrueType, not outlines of type 3"
    vector = first.with_suffix(".svg").read_text()
    assert "<text" not in vector and vector.count("<image") == 1, "the heat map alone is pixels"
    assert len(vector) < 60_000
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        *("a.pdf", "a.png", "a.svg", "b.pdf", "b.png", "b.svg")
    ]


def test_some_pictures_are_png_alone(tmp_path):
    picture(tmp_path / "a.png", forms=PNG_ONLY)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


RECORDS = [DecisionRecord(5, (0,), (0.5, 0.5)), DecisionRecord(10, (1,), (0.2, 0.8))]
DRAW = {
    "scatter": lambda path: scatter({"a": [Point("learned", 1.0, 2.0, 0.1)]}, path, "x", "y"),
    "density": lambda path: loss_density([0.1, 0.2, 0.4], path, {"oracle": 0.3}),
    "speed": lambda path: speed_by_ratio({"depth": [{"ratio": 0.5, "speed_up": 2.0}]}, path),
    "trace": lambda path: decision_trace(RECORDS, path),
    "panels": lambda path: decision_panels({"1:2": RECORDS}, path),
    "curves": lambda path: curves({"kd": [[(1, 2.0), (2, 1.0)]]}, path, "FID"),
}


@pytest.mark.parametrize("name", DRAW)
def test_figures_are_written_in_all_forms_and_the_same_each_time(name, tmp_path):
    one, two = (DRAW[name](tmp_path / folder / "figure.png") for folder in ("one", "two"))
    for form in FORMS:
        content = one.with_suffix(f".{form}").read_bytes()
        assert content and content == two.with_suffix(f".{form}").read_bytes()
        assert len(content) < 300_000


@pytest.mark.parametrize(
    "alike",
    [
        ("learned", "Learnable", "learned 2:4", "TinyFusion"),
        ("flux_lite", "Flux-Lite", "flux_lite, 3 seeds"),
        ("masked_kd", "masked KD", "Masked RepKD"),
        ("finetune", "fine-tuning", "Fine-tuned"[:9]),
        ("depth", "depth pruning", "blocks removed (label: blocks left)"),
        ("diff_pruning, 25 %", "diff_pruning"),
        ("some new pruner", "Some new pruner", "some_new_pruner"),
    ],
)
def test_a_method_has_one_look_by_any_name(alike):
    assert len({method_look(name) for name in alike}) == 1


def test_looks_do_not_depend_on_what_else_is_drawn():
    names = ["oracle", "learned", "shortgpt", "sensitivity", "flux_lite", "random"]
    alone = {name: method_look(name) for name in names}
    assert looks(names) == alone == looks(names[::-1])
    assert list(looks(names[::-1])) == names[::-1]
    assert len({look.colour for look in alone.values()}) == len(names)
    assert method_colour("learned") == COLOURS[0]


def test_no_two_methods_of_a_figure_look_alike():
    names = ["last", "diff_pruning, 25 %", "diff_pruning, 50 %", "diff_pruning, 75 %", "learned"]
    names += [f"unknown {n}" for n in range(25)]
    chosen = looks(names)
    assert len(set(chosen.values())) == len(names)
    assert chosen["last"] == method_look("last"), "a plain name goes first"
    widths = [look.colour for name, look in chosen.items() if name.startswith("diff")]
    assert len(set(widths)) == 1, "variants share a colour"


def test_a_bar_that_reaches_zero_has_an_end():
    assert low_end(2.0, 0.5) == 1.5 and low_end(2.0, 3.0) == 1.0
