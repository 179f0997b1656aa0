"""How long training takes on this machine: a few real steps on random weights and noise."""

from __future__ import annotations

import dataclasses
import gc
import logging
import tempfile
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, evaluating
from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.metrics.memory import peak_gpu_memory
from tinyfusion.metrics.speed import wall_time
from tinyfusion.pipeline.batching import Split
from tinyfusion.pipeline.fit import fit
from tinyfusion.processes.contract import Process
from tinyfusion.quiet import at_least
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.seeding import Rows, StepNoise, generator
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.settings import TrainerSettings, TrainingSettings

STEPS, UNTIMED = 20, 5
"""Steps of a probe, and how many of them come before the clock: kernels are chosen there."""


class NoiseImages(ImageSource):
    """Noise in the shape of images that are not looked at.

    Args:
        count: training images that there would be.
        shape: shape of one, (C, H, W).
        num_classes: number of classes.
    """

    def __init__(self, count: int, shape: tuple[int, int, int], num_classes: int) -> None:
        self.count, self.num_classes = count, num_classes
        self.channels, self.size = shape[0], shape[-1]

    def __len__(self) -> int:
        return self.count

    def fetch(
        self, indices: Tensor, augment: StepNoise | None, rows: Rows | None
    ) -> tuple[Tensor, ClassLabels]:
        """Noise, float32 of shape (B, C, H, W), and labels in turn."""
        draws = generator(0, "probe")
        shape = (len(indices), self.channels, self.size, self.size)
        return torch.randn(shape, generator=draws), ClassLabels(indices % self.num_classes)

    def held_out(self) -> tuple[Tensor, ClassLabels]:
        """A few of the images."""
        return self.fetch(torch.arange(8), None, None)

    def reference(self) -> Tensor:
        """None; nothing is scored against noise."""
        return torch.empty(0, self.channels, self.size, self.size, dtype=torch.uint8)


class Probed(NamedTuple):
    """What a probe found.

    Attributes:
        seconds: median time of an optimiser step.
        peak: most bytes on the GPU; ``None`` on a CPU.
    """

    seconds: float
    peak: int | None


def probe_training(
    module: DenoiserTraining,
    source: ImageSource,
    settings: TrainingSettings,
    trainer: TrainerSettings,
    split: Split,
    phase: str,
    seed: int,
) -> Probed:
    """Train a few steps of one device's share, as the phase does; nothing is kept.

    Args:
        module: the phase with any weights; they are changed.
        source: training images of the right shape.
        settings: the phase's settings.
        trainer: the job's trainer.
        split: how the global batch is shared out.
        phase: name of the phase.
        seed: the run's seed.

    Raises:
        InputError: the device has too little memory.
    """
    share = split.micro_batches * split.images
    alone = dataclasses.replace(
        trainer,
        devices=1,
        num_nodes=1,
        strategy="auto",
        micro_batch=split.images,
        num_workers=0,
        progress=False,
        resume_every=10 * STEPS,
    )
    short = dataclasses.replace(settings, steps=STEPS, batch_size=share)
    clock = _StepClock()
    # Without what a phase says of itself: a probe is none.
    quiet = at_least(logging.CRITICAL, "tinyfusion")
    with tempfile.TemporaryDirectory() as folder, quiet:
        try:
            fit(module, source, short, alone, Path(folder), phase, seed, [], [clock])
        except torch.cuda.OutOfMemoryError:
            raise InputError(
                f"{phase}: micro-batches of {split.images} don't fit into this GPU's memory; give "
                "trainer.micro_batch=N for smaller ones, or trainer.checkpoint_blocks=true"
            ) from None
        finally:
            # Trainer and module know each other: nothing else would free them soon.
            gc.collect()
    return Probed(median(clock.seconds[UNTIMED:]), clock.peak)


class _StepClock(Callback):
    """Seconds of each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak: int | None = None
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = wall_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:
            return
        now = wall_time()
        self._steps = trainer.global_step
        self.seconds.append(now - self._began)
        self._began = now

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.peak = peak_gpu_memory(trainer.strategy.root_device)


class _Enough(Exception):
    """The sampler has taken as many steps as are timed."""


def probe_sampling(
    net: Backbone,
    process: Process,
    sampler: Sampler,
    guidance: Guidance,
    batch_size: int,
    steps: int = 5,
) -> float:
    """Median seconds of one sampling step of a batch.

    Args:
        net: any weights, on the device to sample on.
        process: the process.
        sampler: how to sample.
        guidance: a scale other than 1 costs a second forward.
        batch_size: images sampled at a time.
        steps: timed steps, after one that is not, if the sampler takes so many.
    """
    device = next(net.parameters()).device
    shape = (batch_size, net.in_channels, net.input_size, net.input_size)
    conditioning = net.example_conditioning(batch_size, device)
    seconds: list[float] = []
    began = wall_time()

    def clock(index: int, state: Tensor) -> None:
        nonlocal began
        seconds.append(wall_time() - began)
        if len(seconds) > steps:
            raise _Enough
        began = wall_time()

    with evaluating(net), suppress(_Enough):
        sampler(net, process, lambda: torch.randn(shape), conditioning, guidance, clock)
    return median(seconds[1:] or seconds)
