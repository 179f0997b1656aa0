"""Resume checkpoints that are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tinyfusion.files import write_atomic

RESUME_FILE = "resume.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name and renames, so that a kill never leaves half a checkpoint."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save ``checkpoint`` at ``path`` atomically."""
        write_atomic(
            Path(path),
            lambda temporary: super(AtomicCheckpointIO, self).save_checkpoint(
                checkpoint, temporary, storage_options
            ),
        )


class ResumeCheckpoint(Checkpoint):
    """Saves the state of training every few optimiser steps, replacing the one before.

    A subclass of Lightning's ``Checkpoint`` because those are called after the module's own
    hooks: the averages must have taken the step that is saved.

    Args:
        folder: where ``resume.ckpt`` goes.
        every: optimiser steps between two checkpoints.
        at_end: save the last step as well.
    """

    def __init__(self, folder: Path, every: int, at_end: bool = False) -> None:
        self.path = folder / RESUME_FILE
        self.every, self.at_end = every, at_end
        self._saved_at = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time; never between the micro-batches of one step."""
        step = trainer.global_step
        due = step % self.every == 0 or (self.at_end and step == trainer.max_steps)
        if due and step != self._saved_at and step > 0:
            self._saved_at = step
            trainer.save_checkpoint(self.path)
