"""Random choices: the draw, the study of many candidates, and its resumable list."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from math import comb, inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyfusion.backbones.dit import DiT
from tinyfusion.budget import Budget
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.metrics.prefix_tree import tree_nodes
from tinyfusion.pruners import candidate_list, random
from tinyfusion.pruners.random import Random, draw_sets
from tinyfusion.surgery import prune
from tinyfusion.units import BLOCKS, Place, Unit

MANY = {"candidates": 40, "num_samples": 10, "branches": 4}


def of(depth: int, keep: int) -> Budget:
    """``keep`` of ``depth`` blocks."""
    units = tuple(Unit(BLOCKS, Place("blocks", i, i + 1), i, 1) for i in range(depth))
    return Budget.of(units, keep)


@pytest.fixture
def deep() -> DiT:
    net = DiT(4, in_channels=1, hidden_size=8, depth=8, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


# -- the draw ----------------------------------------------------------------------------------


def test_one_draw_is_reproducible_and_records_its_seed(context) -> None:
    choice = Random().choose(context(2, seed=5))
    assert choice == Random().choose(context(2, seed=5))
    assert choice.scores == {"draw_seed": 5}
    assert Random(draw_seed=5).choose(context(2, seed=0)).kept == choice.kept


def test_one_draw_is_uniform_over_the_sets(context) -> None:
    draws = 3000
    counts = Counter(Random(draw_seed=i).choose(context(2)).kept for i in range(draws))
    assert len(counts) == comb(4, 2)
    expected = draws / comb(4, 2)
    chi_squared = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_squared < 20.5, "99.9 % quantile at five degrees of freedom"


@pytest.mark.parametrize("keep", [0, 4])
@pytest.mark.parametrize("options", [{}, MANY])
def test_keeping_all_or_nothing_is_refused(context, keep: int, options) -> None:
    with pytest.raises(InputError, match=f"keep={keep} must be between 1 and 3"):
        Random(**options).choose(context(keep))


@pytest.mark.parametrize(
    ("depth", "keep", "count"), [(28, 14, 5000), (28, 7, 5000), (10, 5, 200), (9, 4, 100)]
)
def test_many_draws_are_different_ascending_and_include_blocks_evenly(depth, keep, count) -> None:
    sets = draw_sets(of(depth, keep), count, seed=3)
    assert len(set(sets)) == len(sets) == count
    assert sets == sorted(sets)
    assert all(kept == tuple(sorted(set(kept))) and len(kept) == keep for kept in sets)
    assert (
        sets
        == draw_sets(of(depth, keep), count, seed=3)
        != draw_sets(of(depth, keep), count, seed=4)
    )
    frequency = np.bincount(np.concatenate(sets), minlength=depth) / count
    error = (keep / depth * (1 - keep / depth) / count) ** 0.5
    assert abs(frequency - keep / depth).max() < 4 * error


def test_all_sets_are_taken_where_there_are_no_more() -> None:
    assert draw_sets(of(6, 2), 1000, seed=0) == list(combinations(range(6), 2))


@pytest.mark.parametrize(("depth", "count"), [(5, 3), (10, 2)])
def test_every_set_is_drawn_equally_often(depth: int, count: int) -> None:
    # (5, 3): picked from all; (10, 2): drawn until they differ.
    counts = Counter(kept for seed in range(2000) for kept in draw_sets(of(depth, 2), count, seed))
    expected = 2000 * count / comb(depth, 2)
    assert len(counts) == comb(depth, 2)
    chi_squared = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_squared < {5: 27.9, 10: 79.0}[depth], "99.9 % quantile"


# -- the study ---------------------------------------------------------------------------------


def test_choices_are_those_of_brute_force(context, net) -> None:
    calibration = context(2).calibration(10)
    sets = list(combinations(range(4), 2))
    losses = {kept: calibration(prune(net, kept))["loss"] for kept in sets}
    ascending = sorted(sets, key=losses.__getitem__)
    for word, place in (("min", 0), ("median", 3), ("max", 5)):
        choice = Random(choose=word, candidates=1000, num_samples=10).choose(context(2))
        assert choice.kept == ascending[place]
        assert choice.scores["rank"] == place
        assert choice.scores["loss"] == pytest.approx(losses[ascending[place]], rel=1e-5)


def test_scores_tell_of_the_whole_list(context, deep) -> None:
    choice = Random(**MANY).choose(context(4, net=deep))
    scores = choice.scores
    sets = draw_sets(of(8, 4), 40, seed=0)
    losses = [loss for loss, _ in CandidateScores(deep, context(2).calibration(10)).losses(sets)]
    assert scores["loss_min"] == pytest.approx(min(losses), rel=1e-5)
    assert scores["loss_max"] == pytest.approx(max(losses), rel=1e-5)
    assert scores["loss_median"] == scores["loss"] == pytest.approx(sorted(losses)[20], rel=1e-5)
    assert scores["loss_min"] < scores["loss_median"] < scores["loss_max"]
    assert scores["loss_std"] == pytest.approx(np.std(losses), rel=1e-4)
    assert scores["rank"] == 20 and scores["candidates"] == 40 and scores["not_finite"] == 0
    assert scores["naive_block_evaluations"] == 160
    assert scores["block_evaluations"] == tree_nodes(sets) < 160
    assert scores["candidates_per_s"] > 0
    json.dumps(scores, allow_nan=False)


def test_block_evaluations_are_those_that_were_done(context, deep, monkeypatch) -> None:
    made: list[CandidateScores] = []

    class Noted(CandidateScores):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(random, "CandidateScores", Noted)
    monkeypatch.setattr(random, "SEGMENT", 8)
    monkeypatch.setattr(candidate_list, "SEGMENT", 8)
    found = Random(**MANY).choose(context(4, net=deep)).scores["block_evaluations"]
    assert found == made[0].block_evaluations > tree_nodes(draw_sets(of(8, 4), 40, seed=0))


def test_list_and_figure_are_written(context, deep, tmp_path: Path) -> None:
    Random(**MANY, marks={"first": [3, 2, 1, 0]}).choose(context(4, net=deep))
    head, columns, *lines = (tmp_path / "candidates.csv").read_text().splitlines()
    assert json.loads(head.removeprefix("# ")) == {
        "format": "tinyfusion-candidates",
        "source_sha256": None,
        "depth": 8,
        "keep": 4,
        "candidates": 40,
        "draw_seed": 0,
        "seed": 0,
        "num_samples": 10,
    }
    assert columns == "kept,loss,loss_stderr"
    kept = [tuple(map(int, line.split(",")[0].split())) for line in lines]
    assert kept == draw_sets(of(8, 4), 40, seed=0)
    assert not (tmp_path / "candidates.csv.part").exists()
    with Image.open(tmp_path / "density.png") as image:
        assert image.width == 1280


def test_marks_are_evaluated_on_the_same_batch(context, deep, tmp_path: Path) -> None:
    Decision((1, 2, 3, 5), 8).save(tmp_path / "decision.json")
    marks = {"first": [0, 1, 2, 3], "file": str(tmp_path / "decision.json"), "all": list(range(8))}
    scores = Random(**MANY, marks=marks).choose(context(4, net=deep)).scores
    calibration = context(2).calibration(10)
    losses = np.loadtxt(tmp_path / "candidates.csv", delimiter=",", skiprows=2, usecols=1)
    for name, kept in {"first": (0, 1, 2, 3), "file": (1, 2, 3, 5)}.items():
        mark = scores["marks"][name]
        assert mark["kept"] == list(kept)
        assert mark["loss"] == pytest.approx(calibration(prune(deep, kept))["loss"], rel=1e-5)
        assert mark["percentile"] == pytest.approx(100 * (losses < mark["loss"]).mean())
    assert scores["marks"]["all"]["loss"] == pytest.approx(calibration(deep)["loss"], rel=1e-5)


def test_losses_that_are_not_finite_are_listed_and_never_chosen(
    context, deep, tmp_path: Path, monkeypatch
) -> None:
    found = iter([nan, 3.0, inf, 1.0, -inf, 2.0, nan, 5.0] * 5)
    evaluated: list = []

    def losses(self, kept_sets):
        evaluated.extend(kept_sets)
        return ((next(found), 0.5) for _ in kept_sets)

    monkeypatch.setattr(CandidateScores, "losses", losses)
    choice = Random(**MANY, choose="max").choose(context(4, net=deep))
    assert choice.scores["loss"] == 5.0 and choice.scores["not_finite"] == 20
    assert choice.kept == evaluated[39], "the last of the largest"
    assert choice.scores["loss_min"] == 1.0 and choice.scores["loss_median"] == 3.0
    lines = (tmp_path / "candidates.csv").read_text().splitlines()[2:]
    assert [line.split(",")[1] for line in lines[:3]] == ["nan", "3", "inf"]
    monkeypatch.setattr(CandidateScores, "losses", lambda self, sets: ((nan, nan) for _ in sets))
    with pytest.raises(InputError, match="none of 39 candidates has a finite loss"):
        (tmp_path / "candidates.csv").unlink()
        Random(**MANY | {"candidates": 39}).choose(context(4, net=deep))


# -- the file ----------------------------------------------------------------------------------


class Killed(Exception):
    """What ends the process."""


def killed_after(monkeypatch, count: int) -> list[int]:
    """Let the next run end behind so many candidates; later ones list how many they evaluate."""
    plain = CandidateScores.losses
    left, evaluated = [count], []

    def losses(self, kept_sets):
        evaluated.append(len(kept_sets))
        for found in plain(self, kept_sets):
            if left[0] == 0:
                left[0] = -1
                raise Killed
            left[0] -= 1
            yield found

    monkeypatch.setattr(CandidateScores, "losses", losses)
    return evaluated


def test_losses_are_on_the_disk_as_they_come(context, deep, tmp_path: Path, monkeypatch) -> None:
    plain, part, seen = CandidateScores.losses, tmp_path / "candidates.csv.part", []

    def losses(self, kept_sets):
        for found in plain(self, kept_sets):
            seen.append(part.read_bytes().count(b"\n") if part.is_file() else 0)
            yield found

    monkeypatch.setattr(CandidateScores, "losses", losses)
    Random(**MANY).choose(context(4, net=deep))
    assert seen[1:] == list(range(3, 42)), "two lines of the head, then one by one"


@pytest.mark.parametrize("cut", [0, 1, 7, 200])
def test_killed_run_goes_on_and_writes_the_same_bytes(
    context, deep, tmp_path: Path, monkeypatch, cut: int
) -> None:
    monkeypatch.setattr(candidate_list, "SEGMENT", 8)
    path, part = tmp_path / "candidates.csv", tmp_path / "candidates.csv.part"
    whole = Random(**MANY).choose(context(4, net=deep))
    expected = path.read_bytes()
    path.unlink()

    evaluated = killed_after(monkeypatch, 29)
    with pytest.raises(Killed):
        Random(**MANY).choose(context(4, net=deep))
    written = part.read_bytes()
    assert not path.exists() and written == expected[: len(written)]
    assert written.count(b"\n") == 2 + 29
    # A machine that goes down may leave the last lines out, the last of these in part.
    part.write_bytes(written[: len(written) - cut])
    lines = part.read_bytes().count(b"\n") - 2
    evaluated.clear()
    again = Random(**MANY).choose(context(4, net=deep))
    assert path.read_bytes() == expected and not part.exists()
    assert sum(evaluated[:-1]) == 40 - lines // 8 * 8 and evaluated[-1] == 0, "no marks"
    same = set(whole.scores) - {"candidates_per_s"}
    assert again.kept == whole.kept
    assert {k: again.scores[k] for k in same} == {k: whole.scores[k] for k in same}


def test_run_that_was_killed_before_its_first_candidate_starts_anew(
    context, deep, tmp_path: Path
) -> None:
    Random(**MANY).choose(context(4, net=deep))
    expected = (tmp_path / "candidates.csv").read_bytes()
    for left in (b"", expected[:25]):
        (tmp_path / "candidates.csv").unlink()
        (tmp_path / "candidates.csv.part").write_bytes(left)
        Random(**MANY).choose(context(4, net=deep))
        assert (tmp_path / "candidates.csv").read_bytes() == expected


def test_finished_list_is_taken_and_others_choose_from_it(
    context, deep, tmp_path: Path, monkeypatch
) -> None:
    first = Random(**MANY).choose(context(4, net=deep))
    evaluated = killed_after(monkeypatch, -1)
    again = Random(**MANY).choose(context(4, net=deep))
    assert again.kept == first.kept and again.scores["candidates_per_s"] is None
    assert evaluated == [3, 0], "only what is looked at again"
    moved = (tmp_path / "candidates.csv").rename(tmp_path / "former.csv")
    least = Random(**MANY, choose="min", losses=str(moved)).choose(context(4, net=deep))
    assert least.scores["loss"] == first.scores["loss_min"] and least.scores["rank"] == 0
    assert not (tmp_path / "candidates.csv").exists()


@pytest.mark.parametrize(
    ("options", "keep", "seed", "said"),
    [
        ({}, 3, 0, "keep=4 there, keep=3 here"),
        ({}, 4, 1, "draw_seed=0 there, draw_seed=1 here"),
        ({"draw_seed": 0}, 4, 1, " seed=0 there, seed=1 here"),
        ({"num_samples": 11}, 4, 0, "num_samples=10 there, num_samples=11 here"),
        ({"candidates": 41}, 4, 0, "candidates=40 there, candidates=41 here"),
    ],
)
def test_lists_of_other_runs_are_refused(
    context, deep, tmp_path: Path, options, keep: int, seed: int, said: str
) -> None:
    Random(**MANY).choose(context(4, net=deep))
    path = (tmp_path / "candidates.csv").rename(tmp_path / "former.csv")
    pruner = Random(**MANY | options, losses=str(path))
    with pytest.raises(InputError, match=rf"former\.csv' is of another run:.*{said}"):
        pruner.choose(context(keep, seed=seed, net=deep))
    path.rename(tmp_path / "candidates.csv.part")
    with pytest.raises(InputError, match=rf"candidates\.csv\.part' is of another run:.*{said}"):
        Random(**MANY | options).choose(context(keep, seed=seed, net=deep))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[1:], "is not a list of candidates"),
        (lambda lines: ["# 3", *lines[1:]], "is not a list of candidates"),
        (lambda lines: [lines[0], "kept,loss", *lines[2:]], "is not a list of candidates"),
        (lambda lines: [*lines[:6], *lines[7:]], r"line 7: found '0 .*expected 0 "),
        (lambda lines: [*lines[:6], lines[6] + "x", *lines[7:]], "line 7: found"),
        (lambda lines: [*lines[:6], lines[6].rpartition(",")[0], *lines[7:]], "line 7: found"),
        (lambda lines: [*lines, lines[-1]], "line 43: found .*expected the end of the file"),
        (lambda lines: lines[:-1], "ends early, after 39 of 40 candidates"),
        (lambda lines: [*lines[:-1], lines[-1].split(",")[0] + ",0.001,0.1"], "has loss 0.001 th"),
    ],
)
def test_altered_lists_are_refused(context, deep, tmp_path: Path, change, said: str) -> None:
    Random(**MANY).choose(context(4, net=deep))
    path = (tmp_path / "candidates.csv").rename(tmp_path / "former.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(InputError, match=said):
        Random(**MANY, losses=str(path)).choose(context(4, net=deep))


def test_a_list_with_something_behind_its_end_is_refused(context, deep, tmp_path: Path) -> None:
    Random(**MANY).choose(context(4, net=deep))
    path = (tmp_path / "candidates.csv").rename(tmp_path / "former.csv")
    path.write_bytes(path.read_bytes() + b"0 1")
    with pytest.raises(InputError, match=r"former\.csv' has more lines after its 40 candidates"):
        Random(**MANY, losses=str(path)).choose(context(4, net=deep))


def test_list_of_another_model_is_refused_by_its_losses(context, deep, net, tmp_path) -> None:
    Random(**MANY).choose(context(4, net=deep))
    path = (tmp_path / "candidates.csv").rename(tmp_path / "former.csv")
    with torch.no_grad():
        deep.final_layer.linear.weight.mul_(1.1)
    with pytest.raises(InputError, match="not of this model, data and process"):
        Random(**MANY, losses=str(path)).choose(context(4, net=deep))


def test_further_ranks_choose_alike_and_write_nothing(
    context, deep, tmp_path: Path, monkeypatch
) -> None:
    first = Random(**MANY).choose(context(4, net=deep))
    for path in tmp_path.iterdir():
        path.unlink()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Random(**MANY).choose(context(4, net=deep)).kept == first.kept
    assert not list(tmp_path.iterdir())


def test_progress_is_told_now_and_then(context, deep, monkeypatch, caplog) -> None:
    monkeypatch.setattr(candidate_list, "SECONDS_PER_LINE", 0)
    with caplog.at_level("INFO", logger="tinyfusion"):
        Random(**MANY).choose(context(4, net=deep))
    assert "prune: 10 of 40 candidates (25.0 %), " in caplog.text
    assert "candidates/s, 0 s left" in caplog.text


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"candidates": 0}, r"pruner\.candidates=0 must be at least 1"),
        ({"branches": 0}, r"pruner\.branches=0 must be at least 1"),
        ({"num_samples": 1}, r"pruner\.num_samples=1 must be at least 2"),
        ({"choose": "mean"}, r"pruner\.choose='mean' is not known; valid: min, median, max"),
        ({"marks": 3}, r"pruner\.marks=3 must be a dictionary"),
        ({"losses": "x.csv"}, r"pruner\.losses needs several candidates"),
        ({"marks": {"a": [0]}}, r"pruner\.marks needs several candidates"),
    ],
)
def test_bad_options_are_refused(options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Random(**options)


def test_bad_marks_and_missing_files_are_refused_before_any_loss(
    context, net, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(CandidateScores, "losses", None)
    Decision((0, 1), 5).save(tmp_path / "decision.json")
    for marks, said in (
        ({"a": [0, 4]}, r"pruner\.marks\.a=\[0,4\]: block 4 does not exist"),
        ({"a": 3}, r"pruner\.marks\.a=3 must be a list of blocks"),
        ({"a": str(tmp_path / "no.json")}, "does not exist"),
        ({"a": str(tmp_path / "decision.json")}, "among 5 blocks, but the model has 4"),
    ):
        with pytest.raises(InputError, match=said):
            Random(**MANY, marks=marks).choose(context(2))
    with pytest.raises(InputError, match=r"candidates file 'no\.csv' does not exist"):
        Random(**MANY, losses="no.csv").choose(context(2))
