"""Logs how much memory a training phase takes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tinyfusion.data.datamodule import Batch
from tinyfusion.metrics.memory import Activations, peak_gpu_memory
from tinyfusion.text import readable_bytes

log = logging.getLogger(__name__)


class MemoryReport(Callback):
    """Logs what the first micro-batch keeps for its backward pass, and the peak on a GPU.

    Args:
        phase: name of the phase.
        count: whether to count activations; those of compiled blocks can't be seen.

    Attributes:
        activations: bytes counted; ``None`` before the first micro-batch.
    """

    def __init__(self, phase: str, count: bool = True) -> None:
        self.phase, self.count = phase, count
        self.activations: int | None = None
        self._counting: Activations | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the peak."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Start to count, once."""
        if not self.count or self.activations is not None:
            return
        inputs = [batch.images, *batch.conditioning.arguments()]
        self._images = len(inputs[0])
        self._counting = Activations([*pl_module.parameters(), *pl_module.buffers(), *inputs])
        self._counting.__enter__()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Stop counting: what the backward pass keeps itself is no activation."""
        if self._counting is not None:
            self.activations = self._counting.bytes
            self._stop()
            log.info(
                "%s: %s of activations per micro-batch of %d",
                self.phase,
                readable_bytes(self.activations),
                self._images,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what a GPU held at most."""
        self._stop()
        peak = peak_gpu_memory(trainer.strategy.root_device)
        if peak is not None:
            log.info("%s: %s of GPU memory at the peak", self.phase, readable_bytes(peak))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        """Leave no hook behind."""
        self._stop()

    def _stop(self) -> None:
        if self._counting is not None:
            self._counting.__exit__(None, None, None)
            self._counting = None
