"""How far a training phase is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinyfusion.progress import Progress


class PhaseProgress(Callback):
    """Shows phase, step, loss and speed.

    Args:
        phase: name of the phase.
        lines: without a terminal, how many lines a whole phase writes at most.
    """

    def __init__(self, phase: str, lines: int = 10) -> None:
        self.phase, self.lines = phase, lines
        self._progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where the run begins, which a resumed one does in the middle."""
        self._last = trainer.global_step
        if trainer.is_global_zero:
            self._progress = Progress(
                self.phase,
                trainer.max_steps,
                done=trainer.global_step,
                bar=sys.stdout.isatty(),
                unit="steps",
                seconds=0,
                share=1 / self.lines,
                stays=True,
            )
            self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step, once per optimiser step."""
        step = trainer.global_step
        if self._progress is not None and step != self._last:
            self._last = step
            self._progress.reach(step, lambda: _loss(trainer, outputs))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _loss(trainer: Trainer, outputs: Any) -> str:
    """Loss of the step's last micro-batch, which Lightning has divided by their number."""
    if not outputs:
        return ""
    return f"loss {float(outputs['loss']) * trainer.accumulate_grad_batches:.4f}"
