"""Any iterable of batches as training data, such as a DataLoader or a list in a notebook.

Batches are taken as they come, one for each optimiser step, over and over; nothing but a few
samples to calibrate on is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tinyfusion.conditioning import ClassLabels, Conditioning, as_conditioning
from tinyfusion.data.datamodule import Batch, StatelessLoader
from tinyfusion.data.source import ImageSource, not_finite
from tinyfusion.errors import InputError
from tinyfusion.notices import tally
from tinyfusion.pixels import to_uint8
from tinyfusion.seeding import Rows, StepNoise

Pair = tuple[Tensor, Tensor | Conditioning]
"""Data of shape (B, C, H, W), and labels of shape (B,) or another conditioning."""


class BatchStream(ImageSource):
    """Data given as an iterable of pairs ``(images, labels)`` or ``(images, conditioning)``.

    Args:
        batches: pairs; iterated anew whenever it ends, so that a list or a DataLoader serves, but
            no generator that ends before training does.
        held_out: a pair that is never trained on, for held-out losses; ``None`` for none.
        num_classes: number of classes; ``None`` takes the largest label seen in the kept samples.
        keep: samples kept in memory, from the first batches, to calibrate pruners on and to score
            against.
        pixels: whether the data is pixels in [-1, 1], not latents.

    Raises:
        InputError: there is no batch, or something else than a pair whose parts fit.
    """

    def __init__(
        self,
        batches: Iterable[Pair],
        held_out: Pair | None = None,
        num_classes: int | None = None,
        keep: int = 2048,
        pixels: bool = True,
    ) -> None:
        if keep < 1:
            raise InputError(f"keep={keep} must be at least 1")
        self.batches, self.pixels = batches, pixels
        parts, count = [], 0
        for batch in batches:
            parts.append(checked_pair(batch))
            count += len(parts[-1][0])
            if count >= keep:
                break
        if not parts:
            raise InputError("data holds no batch; give an iterable of (images, labels)")
        self.batch_size = len(parts[0][0])
        self._images = torch.cat([images for images, _ in parts])[:keep]
        kinds = [conditioning for _, conditioning in parts]
        self._conditioning = type(kinds[0]).cat(kinds)[:keep]
        self._held_out = None if held_out is None else checked_pair(held_out)
        _, self.channels, self.size, _ = self._images.shape
        if num_classes is None:
            kept = self._conditioning
            num_classes = int(kept.labels.max()) + 1 if isinstance(kept, ClassLabels) else 0
        self.num_classes = num_classes

    def __len__(self) -> int:
        """Number of samples kept."""
        return len(self._images)

    def fetch(
        self, indices: Tensor, augment: StepNoise | None, rows: Rows | None
    ) -> tuple[Tensor, Conditioning]:
        """Some of the samples kept."""
        return self._images[indices], self._conditioning[indices]

    def held_out(self) -> tuple[Tensor, Conditioning]:
        """The held-out pair; empty if there is none."""
        if self._held_out is not None:
            return self._held_out
        return self._images[:0], self._conditioning[:0]

    def reference(self) -> Tensor:
        """The samples kept, uint8 0..255.

        Raises:
            InputError: they are latents.
        """
        if not self.pixels:
            raise InputError("the data holds latents, which are no images to score against")
        return to_uint8(self._images)

    def endless(self) -> Iterator[tuple[Tensor, Conditioning]]:
        """All batches in order, over and over.

        Raises:
            InputError: the iterable can't be begun again.
        """
        while True:
            empty = True
            for batch in self.batches:
                empty = False
                yield checked_pair(batch)
            if empty:
                raise InputError(
                    "data ended and can't be begun again; give a list, a DataLoader, or a "
                    "generator that does not end"
                )


def checked_pair(batch: Any) -> tuple[Tensor, Conditioning]:
    """Data and conditioning of a batch as the user gave it.

    Raises:
        InputError: it is no pair of images (B, C, H, W), square, and labels or conditioning of as
            many samples.
    """
    valid = "valid: (images of shape (B, C, H, H), labels of shape (B,) or a Conditioning)"
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"data: a batch is a {type(batch).__name__}; {valid}")
    images, conditioning = batch
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[2] != images.shape[3]:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"data: the images of a batch are {found}; {valid}")
    if not isinstance(conditioning, Tensor | Conditioning) or len(conditioning) != len(images):
        raise InputError(f"data: {len(images)} images come with {conditioning!r}; {valid}")
    return images.float(), as_conditioning(conditioning)


class StreamData(LightningDataModule):
    """Training batches of a stream, each sharded over devices and cut into micro-batches.

    Args:
        stream: the batches.
        total_steps: optimiser steps.
        accumulate: micro-batches per optimiser step and device.
    """

    def __init__(self, stream: BatchStream, total_steps: int, accumulate: int = 1) -> None:
        super().__init__()
        self.source = stream
        self._total_steps, self._accumulate = total_steps, accumulate

    def train_dataloader(self) -> DataLoader[Batch]:
        """Micro-batches of this rank, from the trainer's global step to the last step."""
        trainer = self.trainer
        assert trainer is not None, "StreamData is used through Trainer.fit"
        return StatelessLoader(
            _MicroBatches(
                self.source,
                range(trainer.global_step, self._total_steps),
                self._accumulate,
                trainer.global_rank,
                trainer.world_size,
            ),
            batch_size=None,
        )


class _MicroBatches(IterableDataset[Batch]):
    def __init__(
        self, stream: BatchStream, steps: range, accumulate: int, rank: int, world: int
    ) -> None:
        self._stream, self._steps = stream, steps
        self._accumulate, self._rank, self._world = accumulate, rank, world

    def __iter__(self) -> Iterator[Batch]:
        parts = self._accumulate * self._world
        # A resumed run sees the batches that follow those it has seen.
        batches = islice(self._stream.endless(), self._steps.start, None)
        for step, (images, conditioning) in zip(self._steps, batches, strict=False):
            size = len(images) // parts
            if not size:
                raise InputError(
                    f"data: a batch of {len(images)} can't be shared by {self._world} device(s) x "
                    f"{self._accumulate} micro-batch(es)"
                )
            if not self._rank:
                _tally(images, parts, step)
            for micro in range(self._accumulate):
                first = (micro * self._world + self._rank) * size
                rows = slice(first, first + size)
                yield Batch(images[rows], conditioning[rows], step, first)


def _tally(images: Tensor, parts: int, step: int) -> None:
    """Count what is not used of a batch, and what will stop its step."""
    if unused := len(images) % parts:
        what = f"sample(s) not used, as each batch is cut into {parts} equal parts"
        tally(what, unused, f"step {step} has {len(images)}")
    if bad := int(not_finite(images).sum()):
        tally(
            "sample(s) with values that are not finite, whose step is skipped", bad, f"step {step}"
        )


def as_source(data: ImageSource | Iterable[Pair]) -> ImageSource:
    """Data as an `ImageSource`; an iterable of batches as a `BatchStream`."""
    return data if isinstance(data, ImageSource) else BatchStream(data)
