"""Training batches as a function of (seed, optimiser step, position in the global batch).

Which images a step sees, and how they are augmented, depends neither on where the run was
interrupted nor on how many devices and micro-batches share the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tinyfusion.conditioning import Conditioning
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.notices import Event, captured, replay
from tinyfusion.seeding import Rows, StepNoise, permutation

SampleKey = tuple[int, int, int]
"""(optimiser step, position in the global batch, number of the training image)."""


class Batch(NamedTuple):
    """One micro-batch of one device.

    The place in the run is kept as plain numbers, because Lightning takes collections apart to
    move them to the device and can't put a frozen dataclass such as ``Rows`` together again.

    Attributes:
        images: what `ImageSource.fetch` gave; on the training device what `ImageSource.finish`
            made of it: float32, shape (B, C, H, W).
        conditioning: of the same B samples.
        step: optimiser step.
        first: position of the first row in the global batch.
        events: what was tallied while the images were fetched, which may be another process.
    """

    images: Tensor
    conditioning: Conditioning
    step: int
    first: int
    events: Sequence[Event] = ()

    @property
    def rows(self) -> Rows:
        """Which rows of which global batch these are."""
        return Rows(self.step, self.first, len(self.images))


class StepBatchSampler(Sampler[list[SampleKey]]):
    """Keys of every micro-batch from a given optimiser step on.

    Sample number ``step * global_batch + position`` of the run is the next image of the current
    epoch's permutation; epochs follow each other without a gap, even inside a batch. Micro-batch
    k of rank r holds positions ``[(k * world + r) * size, ... + size)``.

    Args:
        num_images: number of training images.
        seed: the run's seed; with the epoch it gives the order of images.
        total_steps: optimiser steps of the whole run.
        global_batch: images per optimiser step, over all devices and micro-batches.
        start_step: asked at every ``iter()`` for the first step that is still to do.
        accumulate: micro-batches per optimiser step and device.
        rank: number of this device.
        world: number of devices.

    Raises:
        InputError: ``global_batch`` doesn't divide into devices and micro-batches, or there are
            no images.
    """

    def __init__(
        self,
        num_images: int,
        seed: int,
        total_steps: int,
        global_batch: int,
        start_step: Callable[[], int],
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if num_images < 1:
            raise InputError("data: no training images")
        if global_batch < 1 or accumulate < 1 or global_batch % (accumulate * world):
            raise InputError(
                f"global batch of {global_batch} images can't be split evenly into {world} "
                f"device(s) x {accumulate} micro-batch(es); choose a multiple of "
                f"{world * max(accumulate, 1)}"
            )
        self._num_images, self._seed = num_images, seed
        self._total_steps, self._global_batch = total_steps, global_batch
        self._start_step, self._accumulate = start_step, accumulate
        self._rank, self._world = rank, world
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Micro-batches of the whole run, also of the steps that are done already.

        Lightning counts the batches of a resumed run from those seen before the interruption.
        """
        return self._total_steps * self._accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Not a generator itself: the step must be asked for now, not when the first batch is due.
        return self._batches(self._start_step())

    def _batches(self, start: int) -> Iterator[list[SampleKey]]:
        size = self._global_batch // (self._accumulate * self._world)
        for step in range(start, self._total_steps):
            for micro in range(self._accumulate):
                first = (micro * self._world + self._rank) * size
                images = self._images(step * self._global_batch + first, size)
                yield [(step, first + row, image) for row, image in enumerate(images)]

    def _images(self, first: int, count: int) -> list[int]:
        """Image numbers of ``count`` samples of the run, from number ``first`` on."""
        images: list[int] = []
        while len(images) < count:
            epoch, offset = divmod(first + len(images), self._num_images)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = permutation(self._seed, epoch, self._num_images)
            images += self._order[offset : offset + count - len(images)].tolist()
        return images


class _TrainingImages(Dataset[Batch | InputError]):
    """Fetches a whole micro-batch at once.

    What the data refuses is handed on in place of the batch: torch would put a worker's traceback
    into its message.

    Args:
        source: the images.
        augment: draws of the augmentation.
    """

    def __init__(self, source: ImageSource, augment: StepNoise) -> None:
        self._source, self._augment = source, augment

    def __getitems__(self, keys: list[SampleKey]) -> Batch | InputError:
        step, first, _ = keys[0]
        indices = torch.tensor([image for _, _, image in keys])
        rows = Rows(step, first, len(keys))
        try:
            with captured() as events:
                images, conditioning = self._source.fetch(indices, self._augment, rows)
        except InputError as error:
            return error
        return Batch(images, conditioning, step, first, events)


class StatelessLoader(DataLoader[Any]):
    """Tells Lightning that it can be resumed; what it yields follows from the global step alone."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing has to be saved."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing was saved."""


class TrainingData(LightningDataModule):
    """Training batches of one phase, starting at the trainer's global step.

    The trainer must be built with ``max_steps=total_steps``, ``max_epochs=-1``,
    ``accumulate_grad_batches=accumulate`` and ``use_distributed_sampler=False``. The whole run is
    one epoch to Lightning. Checkpoints must be saved between optimiser steps: the gradients of a
    half accumulated step are in no checkpoint. A run may be resumed on another number of devices.

    Args:
        source: the images.
        seed: the run's seed.
        phase: name of the phase, so that two phases of one run don't share draws.
        total_steps: optimiser steps of the phase.
        global_batch: images per optimiser step, over all devices and micro-batches.
        accumulate: micro-batches per optimiser step and device.
        num_workers: processes that fetch images; 0 fetches in the training process.
    """

    def __init__(
        self,
        source: ImageSource,
        seed: int,
        phase: str,
        total_steps: int,
        global_batch: int,
        accumulate: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self._seed, self._phase = seed, phase
        self._total_steps, self._global_batch = total_steps, global_batch
        self._accumulate, self._num_workers = accumulate, num_workers
        self._augment = StepNoise(seed, phase)

    def on_before_batch_transfer(self, batch: Batch | InputError, dataloader_idx: int) -> Batch:
        """Raise what the data has refused, and say what it has tallied, where it was fetched.

        Raises:
            InputError: such as an image that can't be decoded.
        """
        if isinstance(batch, InputError):
            raise batch
        replay(batch.events)
        return batch._replace(events=())

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move the batch; to a GPU without waiting, as Lightning does for plain tensors only."""
        asynchronous = device.type == "cuda"  # from page-locked memory, see `train_dataloader`
        return batch._replace(
            images=batch.images.to(device, non_blocking=asynchronous),
            conditioning=batch.conditioning.to(device, non_blocking=asynchronous),
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Finish the batch where it is trained on: latents are drawn and scaled here."""
        return batch._replace(images=self.source.finish(batch.images, self._augment, batch.rows))

    def train_dataloader(self) -> DataLoader[Batch | InputError]:
        """Micro-batches of this rank, from the trainer's global step to the last step.

        Raises:
            InputError: the global batch can't be split evenly, or the run is resumed with
                micro-batches that don't fit those already seen.
        """
        trainer = self.trainer
        assert trainer is not None, "TrainingData is used through Trainer.fit"
        assert trainer.accumulate_grad_batches == self._accumulate
        # Lightning takes an optimiser step whenever *its* count of micro-batches, restored from
        # the checkpoint, is a multiple of `accumulate`.
        seen = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if seen % self._accumulate:
            raise InputError(
                f"resume: the checkpoint was saved after {seen} micro-batches, which is no whole "
                f"number of optimiser steps of {self._accumulate}; resume with the number of "
                "micro-batches per step that it was saved with"
            )
        sampler = StepBatchSampler(
            len(self.source),
            self._seed,
            self._total_steps,
            self._global_batch,
            start_step=lambda: trainer.global_step,
            accumulate=self._accumulate,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        return StatelessLoader(
            _TrainingImages(self.source, self._augment),
            batch_sampler=sampler,
            collate_fn=_already_a_batch,
            num_workers=self._num_workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )


def _already_a_batch(batch: Any) -> Any:
    # A list of samples to torch's types, but `__getitems__` gave what is passed on as it is.
    return batch
