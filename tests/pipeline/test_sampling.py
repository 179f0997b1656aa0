"""Drawing into a folder together: shares, failures, what is shown."""

from __future__ import annotations

import os
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.sample_store import SampleStore
from tinyfusion.errors import InputError, RanksFailedError
from tinyfusion.group import ALONE, Group, joined
from tinyfusion.pipeline.sampling import draw_missing
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.generate import Drawing

N, BATCH = 26, 4


def parts(folder: Path, count: int = N, form: str = "png") -> tuple[SampleStore, Drawing]:
    torch.manual_seed(0)
    net = DiT(8, 2, 1, hidden_size=16, depth=1, num_heads=2, num_classes=10).eval()
    labels = ClassLabels(torch.arange(count) % 10)
    drawing = Drawing(net, GaussianDiffusion(), DDIMSampler(4), labels, seed=0, batch_size=BATCH)
    return SampleStore(folder, count, drawing.shape, BATCH, 2 * BATCH, form), drawing


def draw(folder: Path, group: Group = ALONE, show: Any = None, form: str = "png") -> list[str]:
    """Draw what is missing; gives the names of what this rank wrote."""
    store, drawing = parts(folder, form=form)
    wrote: list[str] = []
    fill = store.fill

    def noted(shard: int, *rest: Any) -> None:
        fill(shard, *rest)
        wrote.extend(f"{batch}" for batch in store.batches_of(shard))

    store.fill = noted
    draw_missing(store, drawing, group.from_first(store.missing), group, show)
    return wrote


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_progress_counts_parts_of_images(tmp_path) -> None:
    store, drawing = parts(tmp_path, 12)
    seen: list[float] = []
    draw_missing(store, drawing, [1, 2], show=seen.append)
    # Four steps for each of two batches of four images, of which four were there.
    assert seen == [5, 6, 7, 8, 9, 10, 11, 12]


def test_samplers_need_not_take_the_steps_that_they_announce(tmp_path) -> None:
    class Restless(DDIMSampler):
        def __init__(self, announced: int) -> None:
            super().__init__(4)
            self.announced = announced

        def num_steps(self, process: Any) -> int:
            return self.announced

    for announced in (3, 5):
        store, drawing = parts(tmp_path / str(announced), 8)
        object.__setattr__(drawing, "sampler", Restless(announced))
        seen: list[float] = []
        draw_missing(store, drawing, store.missing(), show=seen.append)
        assert seen == sorted(set(seen)) and seen[-1] == 8


@pytest.mark.parametrize("form", ["png", "npz"])
def test_ranks_draw_what_one_process_draws(tmp_path, on_ranks, form) -> None:
    torch.set_num_threads(1)
    assert draw(tmp_path / "one", form=form) == [str(batch) for batch in range(7)]
    whole = contents(tmp_path / "one")
    for count in (2, 3):
        folder = tmp_path / str(count)
        wrote = on_ranks(count, lambda f=folder: draw(f, joined(), form=form))
        assert contents(folder) == whole
        assert sorted(chain(*wrote)) == [str(batch) for batch in range(7)] and all(wrote)
        # What a kill has left out is shared evenly, whoever drew it before.
        for file in sorted(folder.iterdir())[-len(whole) // 2 :]:
            file.unlink()
        wrote = on_ranks(count, lambda f=folder: draw(f, joined(), form=form))
        assert contents(folder) == whole
        assert max(map(len, wrote)) - min(map(len, wrote)) <= (1 if form == "png" else 2)


def test_the_first_rank_shows_what_all_have_drawn(tmp_path, on_ranks) -> None:
    def work() -> list[float]:
        seen: list[float] = []
        draw(tmp_path / "samples", joined(), seen.append)
        return seen

    first, second = on_ranks(2, work)
    assert first == sorted(set(first)) and first[-1] == N and second == []


def test_a_rank_that_fails_is_not_waited_for(tmp_path, on_ranks, monkeypatch) -> None:
    def work() -> tuple[str, float]:
        group, began = joined(), time.monotonic()
        if group.rank == 1:
            monkeypatch.setattr(SampleStore, "fill", lambda *_: 1 / 0)
        try:
            draw(tmp_path / "samples", group)
        except (ZeroDivisionError, RanksFailedError) as error:
            return type(error).__name__, time.monotonic() - began
        return "nothing", 0.0

    first, second = on_ranks(2, work)
    assert first[0] == "RanksFailedError" and first[1] < 5 and second[0] == "ZeroDivisionError"
    # Resumed, it is no longer one that has failed, and nothing is left of it.
    on_ranks(2, lambda: draw(tmp_path / "samples", joined()))
    assert len(os.listdir(tmp_path / "samples")) == N


def test_too_little_memory_is_one_line(tmp_path, monkeypatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(SampleStore, "fill", fail)
    with pytest.raises(InputError, match="batch_size=4 needs more memory than the device"):
        draw(tmp_path)
