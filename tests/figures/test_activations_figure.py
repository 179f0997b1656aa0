"""Figure of massive activations, from the same plain data that the command writes."""

from __future__ import annotations

import copy
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures.activations import coarser, massive_activations, printed_activations
from tinyfusion.metrics.state_summary import merged, summarise, symlog_edges
from tinyfusion.report.paper import paper_figure

SIGMAS = (0.1, 2.0, 4.0)
EDGES = symlog_edges().tolist()


def described(places: list[int], scale: float = 12.0, massive: float = -429.0) -> dict[str, Any]:
    """States as the paper describes them: almost normal, with a massive entry in late blocks."""
    found = []
    for place in places:
        states = scale * (0.5 + place / 28) * torch.randn(8, 16, 32)
        if place > 9:
            states[:, 0, 3] = massive * place / 27
            states[:, 5, 9] = -massive / 2 * place / 27
        found.append(summarise(states, SIGMAS))
    blocks = [
        {"place": place, **one.as_dict(SIGMAS)} for place, one in zip(places, found, strict=True)
    ]
    together = reduce(merged, found).as_dict(SIGMAS)
    return {"whole": {"blocks": len(places), **together}, "blocks": blocks}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "teacher": described(list(range(28))),
        "student": described(list(range(1, 28, 2)), 14.0, -526.0),
    }


def test_draws_two_models_and_one(models: dict[str, Any], tmp_path: Path) -> None:
    both = massive_activations(models, EDGES, tmp_path / "both.png", "digits")
    one = massive_activations({"model": models["teacher"]}, EDGES, tmp_path / "one.png")
    assert Image.open(both).size == Image.open(one).size == (1440, 1120)
    assert both.read_bytes() != one.read_bytes()


def test_the_papers_numbers_stand_below_the_measured_ones(
    models: dict[str, Any], tmp_path: Path, saved: list
) -> None:
    printed = printed_activations(paper_figure(8))
    assert printed["teacher"] == {"max": 191.2, "min": -429.01, "std": 12.54}
    massive_activations(models, EDGES, tmp_path / "a.png", printed=printed)
    massive_activations(models, EDGES, tmp_path / "b.png", printed={"student": printed["student"]})
    written = [
        [[text.get_text() for text in axes.texts] for axes in figure.axes[:2]] for figure in saved
    ]
    (teacher, student), (alone, same) = written
    assert len(teacher) == 2 and len(alone) == 1 and same == student
    assert "Max: 191.20" in teacher[1] and teacher[1].startswith("paper:")
    assert "Min: -526.62" in student[1]
    assert f"Max: {models['teacher']['whole']['max']:.2f}" in teacher[0]
    renderer = saved[0].canvas.get_renderer()
    above, below = (text.get_window_extent(renderer) for text in saved[0].axes[0].texts)
    assert not above.overlaps(below)


def test_same_data_same_bytes_and_other_data_other_bytes(
    models: dict[str, Any], tmp_path: Path
) -> None:
    first = massive_activations(models, EDGES, tmp_path / "a.png").read_bytes()
    assert massive_activations(models, EDGES, tmp_path / "b.png").read_bytes() == first
    above, below = copy.deepcopy(models), copy.deepcopy(models)
    above["student"]["whole"]["histogram"] = above["teacher"]["whole"]["histogram"]
    below["student"]["blocks"][3]["dropped"]["4"] = 0.3
    for other in (above, below):
        assert massive_activations(other, EDGES, tmp_path / "c.png").read_bytes() != first


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_states_of_every_size_are_drawn(scale: float, tmp_path: Path) -> None:
    found = described([0, 1], scale, -40 * scale)
    assert massive_activations({"model": found}, EDGES, tmp_path / "x.png").is_file()


def test_a_block_without_finite_states_or_drops_leaves_a_gap(
    models: dict[str, Any], tmp_path: Path
) -> None:
    found = copy.deepcopy(models["teacher"])
    found["blocks"][27] |= {"min": None, "max": None}
    found["blocks"][3]["dropped"]["4"] = 0.0
    assert massive_activations({"model": found}, EDGES, tmp_path / "x.png").is_file()
    constant = described([0], 0.0, 0.0)
    assert massive_activations({"model": constant}, EDGES, tmp_path / "y.png").is_file()


@pytest.mark.parametrize("threshold", [0.01, 1.0, 1000.0, 1e6])
def test_joined_bins_lose_no_entry_and_look_equally_wide(threshold: float) -> None:
    given = np.arange(1, len(EDGES))
    counts, edges = coarser(given.tolist(), EDGES, threshold)
    assert counts.sum() == given.sum()
    assert set(edges) <= set(np.asarray(EDGES)) and (np.diff(edges) > 0).all()
    assert (edges[0], edges[-1]) == (EDGES[0], EDGES[-1])
    drawn = np.where(
        np.abs(edges) < threshold,
        edges / threshold / np.log(10),
        np.sign(edges) * (1 / np.log(10) + np.log10(np.maximum(np.abs(edges), 1e-9) / threshold)),
    )
    widths = np.diff(drawn)
    assert threshold > EDGES[-1] or widths.max() / widths.min() < 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.clear(), "there is no model to draw"),
        (lambda m: m["teacher"]["blocks"].clear(), "teacher has no block"),
        (lambda m: m["student"]["whole"]["histogram"].pop(), "student has a histogram of 679 bins"),
        (lambda m: m["student"]["whole"].update(min=None), "no hidden state of student"),
    ],
)
def test_what_can_not_be_drawn_is_refused(
    models: dict[str, Any], change, message: str, tmp_path: Path
) -> None:
    changed = copy.deepcopy(models)
    change(changed)
    with pytest.raises(InputError, match=message):
        massive_activations(changed, EDGES, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()
