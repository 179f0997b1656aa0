"""How far a training stage is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class StageProgress(Callback):
    """Shows stage, step, loss and speed.

    Args:
        stage: name of the stage.
        lines: without a terminal, how many lines a whole stage writes at most.
    """

    def __init__(self, stage: str, lines: int = 10) -> None:
        self.stage, self.lines = stage, lines
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where the run begins, which a resumed one does in the middle."""
        self._began, self._first = time.perf_counter(), trainer.global_step
        self._last = trainer.global_step
        if not trainer.is_global_zero or not sys.stdout.isatty():
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        self._task = self._bar.add_task(
            self.stage, total=trainer.max_steps, completed=trainer.global_step, loss=""
        )
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step, once per optimiser step."""
        step = trainer.global_step
        if step == self._last or not trainer.is_global_zero:
            return
        self._last = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=_loss(trainer, outputs))
        elif step % max(1, trainer.max_steps // self.lines) == 0 or step == trainer.max_steps:
            speed = (step - self._first) / (time.perf_counter() - self._began)
            log.info(
                "%s: step %d/%d, %s, %.1f steps/s",
                self.stage,
                step,
                trainer.max_steps,
                _loss(trainer, outputs),
                speed,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _loss(trainer: Trainer, outputs: Any) -> str:
    """Loss of the step's last micro-batch, which Lightning has divided by their number."""
    if not outputs:
        return ""
    return f"loss {float(outputs['loss']) * trainer.accumulate_grad_batches:.4f}"
