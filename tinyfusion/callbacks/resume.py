"""Resume checkpoints that are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from tinyfusion.checkpoints.tensors import read_torch
from tinyfusion.files import write_atomic
from tinyfusion.interrupts import Interrupted, asked
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.phases import RESUME_FILE


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the file and renames, so that a kill never leaves half a checkpoint.

    Lightning's own makes two more copies: one in memory, one in the system's temporary folder,
    which often is too small for it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save ``checkpoint`` at ``path`` atomically.

        Raises:
            OSError: it can't be written.
        """

        def write(file: Path) -> None:
            with open(file, "wb") as handle:
                torch.save(checkpoint, handle)

        write_atomic(Path(path), write)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What `save_checkpoint` has written, on the CPU.

        Raises:
            InputError: the file is damaged.
        """
        checkpoint: dict[str, Any] = read_torch(Path(path))
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file."""
        Path(path).unlink(missing_ok=True)


class ResumeCheckpoint(Checkpoint):
    """Saves the state of training every few optimiser steps, replacing the one before.

    When a process of the run is asked to stop, all ranks save at the end of the same step.

    Called before the module's own ``on_train_batch_end``: what is saved is what the module's
    ``optimizer_step`` has left.

    Args:
        folder: where ``resume.ckpt`` goes.
        every: optimiser steps between two checkpoints.
        at_end: save the last step as well.
    """

    def __init__(self, folder: Path, every: int, at_end: bool = False) -> None:
        self.path = folder / RESUME_FILE
        self.every, self.at_end = every, at_end
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the run begins, which a resumed one does in the middle."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time; never between the micro-batches of one step.

        Raises:
            Interrupted: a process of the run was asked to stop; the step has been saved.
        """
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        assert isinstance(pl_module, DenoiserTraining)
        # Several ranks know it by the step's own message, and stop at the same one.
        stop = asked() if trainer.world_size == 1 else pl_module.asked_to_stop
        ends = step == trainer.max_steps or trainer.should_stop
        if stop or step % self.every == 0 or (self.at_end and ends):
            trainer.save_checkpoint(self.path)
        if stop:
            raise Interrupted(stop)
