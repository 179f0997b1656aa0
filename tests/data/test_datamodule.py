from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from tinyfusion.data.datamodule import Batch, StepBatchSampler, TrainingData, _TrainingImages
from tinyfusion.data.digits import Digits
from tinyfusion.data.imagefolder import ImageFolder
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.notices import captured
from tinyfusion.seeding import Rows, StepNoise, permutation

STEPS, GLOBAL_BATCH, IMAGES = 6, 8, 20  # epochs of the data end inside steps 2 and 4


@pytest.fixture
def source(tmp_path: Path) -> ImageFolder:
    """Twenty small images, flipped at random."""
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        folder = tmp_path / "images" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return ImageFolder(tmp_path / "images", size=4, channels=1)


class Recorder(LightningModule):
    """Fits one number and keeps every batch it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, Batch]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append((self.global_step, batch))
        return (self.weight * batch.images - 0.5).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves a checkpoint right after some optimiser steps."""

    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        micro_batches = arguments[-1] + 1
        if micro_batches % trainer.accumulate_grad_batches:
            return
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def make_trainer(steps: int, accumulate: int, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **options},
    )


def train(
    source: ImageSource,
    steps: int = STEPS,
    accumulate: int = 1,
    resume: Path | None = None,
    save: SaveAt | None = None,
    num_workers: int = 0,
) -> Recorder:
    module = Recorder()
    trainer = make_trainer(steps, accumulate, callbacks=[save] if save else [])
    data = TrainingData(source, 3, "test", steps, GLOBAL_BATCH, accumulate, num_workers)
    # Lightning before 2.6 has no such argument.
    supported = "weights_only" in inspect.signature(trainer.fit).parameters
    options = {"weights_only": True} if supported else {}
    trainer.fit(module, datamodule=data, ckpt_path=resume, **options)
    assert trainer.global_step == steps
    return module


def assert_same(seen: list[tuple[int, Batch]], expected: list[tuple[int, Batch]]) -> None:
    assert len(seen) == len(expected)
    for (step, batch), (expected_step, other) in zip(seen, expected, strict=True):
        assert step == expected_step == batch.step
        assert batch.rows == other.rows
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.conditioning.labels, other.conditioning.labels)


def keys(steps: int = 9, start: int = 0, **arguments: int) -> list[list[tuple[int, int, int]]]:
    return list(StepBatchSampler(10, 5, steps, 12, lambda: start, **arguments))


def test_sampler_walks_through_the_permutations_without_gaps() -> None:
    flat = [key for batch in keys() for key in batch]
    assert [(step, position) for step, position, _ in flat] == [
        (step, position) for step in range(9) for position in range(12)
    ]
    order = torch.cat([permutation(5, epoch, 10) for epoch in range(11)])
    assert [image for *_, image in flat] == order[: 9 * 12].tolist()


def test_sampler_starts_anywhere_and_spans_many_epochs_at_once() -> None:
    assert keys(start=4) == keys()[4:]
    assert keys(start=9) == []
    wide = next(iter(StepBatchSampler(3, 5, 1, 12, lambda: 0)))
    order = torch.cat([permutation(5, epoch, 3) for epoch in range(4)])
    assert [image for *_, image in wide] == order.tolist()


def test_start_is_asked_for_at_every_iteration() -> None:
    now = [2]
    sampler = StepBatchSampler(10, 5, 9, 12, lambda: now[0], accumulate=3)
    assert len(sampler) == 27
    iterator = iter(sampler)
    now[0] = 7
    assert next(iterator)[0][0] == 2
    assert next(iter(sampler))[0][0] == 7


def test_ranks_and_micro_batches_share_the_batch_of_one_device() -> None:
    whole = keys()
    ranks = [keys(accumulate=3, rank=rank, world=2) for rank in range(2)]
    for step in range(9):
        parts = [ranks[rank][3 * step + micro] for micro in range(3) for rank in range(2)]
        assert all(len(part) == 2 for part in parts)
        assert [key for part in parts for key in part] == whole[step]


def test_parts_of_a_batch_are_augmented_like_the_whole() -> None:
    dataset = _TrainingImages(Digits(), StepNoise(3, "test"))
    whole = [dataset.__getitems__(batch) for batch in keys()]
    ranks = [
        [dataset.__getitems__(batch) for batch in keys(accumulate=2, rank=rank, world=3)]
        for rank in range(3)
    ]
    for step in range(9):
        parts = [ranks[rank][2 * step + micro] for micro in range(2) for rank in range(3)]
        assert [part.rows for part in parts] == [Rows(step, first, 2) for first in range(0, 12, 2)]
        assert torch.equal(torch.cat([part.images for part in parts]), whole[step].images)
        labels = torch.cat([part.conditioning.labels for part in parts])
        assert torch.equal(labels, whole[step].conditioning.labels)


@pytest.mark.parametrize(
    ("global_batch", "accumulate", "world", "multiple"),
    [(12, 5, 1, 5), (12, 2, 4, 8), (0, 1, 1, 1)],
)
def test_uneven_split_is_refused(
    global_batch: int, accumulate: int, world: int, multiple: int
) -> None:
    with pytest.raises(InputError, match=f"batch of {global_batch} .*multiple of {multiple}$"):
        StepBatchSampler(10, 5, 9, global_batch, lambda: 0, accumulate=accumulate, world=world)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_sees_every_step_once_and_resumes_exactly(
    source: ImageFolder, tmp_path: Path, accumulate: int
) -> None:
    save = SaveAt(tmp_path, steps=(1, 3, STEPS))
    full = train(source, accumulate=accumulate, save=save)
    size = GLOBAL_BATCH // accumulate
    places = [(batch.step, batch.first, len(batch.images)) for _, batch in full.seen]
    assert places == [
        (step, micro * size, size) for step in range(STEPS) for micro in range(accumulate)
    ]
    for step in save.steps:
        resumed = train(source, accumulate=accumulate, resume=tmp_path / f"{step}.ckpt")
        assert_same(resumed.seen, full.seen[step * accumulate :])
        assert torch.equal(resumed.weight, full.weight)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_finished_run_can_be_prolonged(
    source: ImageFolder, tmp_path: Path, accumulate: int
) -> None:
    train(source, accumulate=accumulate, save=SaveAt(tmp_path, steps=(STEPS,)))
    longer = train(source, STEPS + 3, accumulate)
    prolonged = train(source, STEPS + 3, accumulate, resume=tmp_path / f"{STEPS}.ckpt")
    assert_same(prolonged.seen, longer.seen[STEPS * accumulate :])
    assert torch.equal(prolonged.weight, longer.weight)


def test_workers_give_the_same_batches(source: ImageFolder, tmp_path: Path) -> None:
    full = train(source, save=SaveAt(tmp_path, steps=(3,)))
    resumed = train(source, resume=tmp_path / "3.ckpt", num_workers=1)
    assert_same(resumed.seen, full.seen[3:])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_one_line_wherever_it_is_read(
    source: ImageFolder, tmp_path: Path, num_workers: int
) -> None:
    (tmp_path / "images/1/7.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"7\.png' can't be decoded") as caught:
        train(source, num_workers=num_workers)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_loader_tallies_is_counted_in_the_training_process(
    source: ImageFolder, tmp_path: Path, num_workers: int
) -> None:
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(tmp_path / "images/1/7.png")
    with captured() as events:
        train(source, num_workers=num_workers)
    assert len(events) > 1  # once for every epoch, of one item
    assert {event.item for event in events} == {str(tmp_path / "images/1/7.png")}


def test_other_micro_batches_on_resume_fit_or_are_refused(
    source: ImageFolder, tmp_path: Path
) -> None:
    full = train(source, save=SaveAt(tmp_path, steps=(3, 4)))
    resumed = train(source, accumulate=2, resume=tmp_path / "4.ckpt")
    halves = zip(resumed.seen[::2], resumed.seen[1::2], strict=True)
    merged = [torch.cat([first.images, second.images]) for (_, first), (_, second) in halves]
    assert torch.equal(torch.stack(merged), torch.stack([b.images for _, b in full.seen[4:]]))
    with pytest.raises(InputError, match="saved after 3 micro-batches"):
        train(source, accumulate=2, resume=tmp_path / "3.ckpt")


def test_resuming_raises_no_warning_about_the_data(
    source: ImageFolder, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    train(source, save=SaveAt(tmp_path, steps=(3,)))
    train(source, resume=tmp_path / "3.ckpt")
    assert not [warning for warning in recwarn if "resum" in str(warning.message)]


class SavingRecorder(Recorder):
    """Leaves what it saw in a file, as the module of another process is out of reach."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self) -> None:
        seen = [
            (batch.step, batch.first, batch.images, batch.conditioning.labels)
            for _, batch in self.seen
        ]
        torch.save((seen, self.weight.data), self.folder / f"rank{self.global_rank}.pt")


@pytest.mark.slow
def test_two_devices_train_on_the_batches_of_one(source: ImageFolder, tmp_path: Path) -> None:
    single = train(source, save=SaveAt(tmp_path, steps=(2,)))
    trainer = make_trainer(STEPS, 2, devices=2, strategy="ddp_fork")
    data = TrainingData(source, 3, "test", STEPS, GLOBAL_BATCH, accumulate=2)
    trainer.fit(SavingRecorder(tmp_path), datamodule=data, ckpt_path=tmp_path / "2.ckpt")
    files = [tmp_path / f"rank{rank}.pt" for rank in range(2)]
    ranks = [torch.load(file, weights_only=True) for file in files]
    batches = sorted((batch for seen, _ in ranks for batch in seen), key=lambda batch: batch[:2])
    for step, (_, whole) in enumerate(single.seen[2:]):
        _, _, images, labels = zip(*batches[4 * step : 4 * step + 4], strict=True)
        assert torch.equal(torch.cat(images), whole.images)
        assert torch.equal(torch.cat(labels), whole.conditioning.labels)
    for _, weight in ranks:
        torch.testing.assert_close(weight, single.weight.data, rtol=1e-5, atol=1e-6)
