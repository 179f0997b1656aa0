"""Curves beside the loss: learning rate, throughput, held-out loss."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinyfusion.errors import InputError
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.recovery import Recovery


class TrainingCurves(Callback):
    """Logs learning rate and throughput with the loss, and in recovery a held-out loss.

    ``train/learning_rate`` is the base rate of the step, ``train/images_per_s`` the images of all
    devices over the seconds that steps took since the last entry (loading, scoring and drawing
    between steps left out). ``held_out/loss`` is that of the averaged weights on a fixed small
    batch of held-out images: the process's own loss, whatever recovery minimises. Nothing is drawn
    from the generators of training. Pre-training has its held-out loss itself, and the network of
    mask learning is thrown away.

    Args:
        held_out_every: steps between two held-out losses, which come with the next entry of the
            log; ``None`` for a twentieth of the phase, 0 for none.
        held_out_images: size of that batch.

    Raises:
        InputError: ``held_out_every`` is below 0 or ``held_out_images`` below 1.
    """

    def __init__(self, held_out_every: int | None = None, held_out_images: int = 64) -> None:
        for name, value, least in (
            ("held_out_every", held_out_every, 0),
            ("held_out_images", held_out_images, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"callbacks.curves.{name}={value} must be at least {least}")
        self.held_out_every, self.held_out_images = held_out_every, held_out_images
        self._held_out: HeldOutLoss | None = None
        self._images, self._seconds, self._began, self._last = 0, 0.0, 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the run begins."""
        self._last = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log if it is time, once per optimiser step."""
        assert isinstance(pl_module, DenoiserTraining)
        self._seconds += time.perf_counter() - self._began
        self._images += len(batch.images) * trainer.world_size
        step = trainer.global_step
        if step == self._last:  # a micro-batch of an accumulated step
            return
        before, self._last = self._last, step
        if not pl_module.logs_now:
            return
        rate = pl_module._learning_rate
        pl_module.log("train/learning_rate", rate.peak * rate.factor(before, pl_module.total_steps))
        pl_module.log("train/images_per_s", self._images / max(self._seconds, 1e-9))
        self._images, self._seconds = 0, 0.0
        if isinstance(pl_module, Recovery) and self._is_due(trainer, pl_module, step):
            self._score(trainer, pl_module)

    def _is_due(self, trainer: Trainer, module: Recovery, step: int) -> bool:
        """Whether a multiple of ``held_out_every`` has been passed since the last entry."""
        every = self.held_out_every
        every = max(1, module.total_steps // 20) if every is None else every
        source = getattr(getattr(trainer, "datamodule", None), "source", None)
        if not every or not hasattr(source, "held_out"):
            return False
        entries: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # of its loggers
        passed = step // every > max(0, step - entries) // every
        return passed or step == module.total_steps

    def _score(self, trainer: Trainer, module: Recovery) -> None:
        with module.scored_net() as net:  # which all ranks enter together
            if net is None:
                return
            if self._held_out is None:
                images, conditioning = trainer.datamodule.source.held_out()  # type: ignore[attr-defined]
                if not len(images):
                    return
                some = slice(0, self.held_out_images)
                self._held_out = HeldOutLoss(
                    module.process, images[some], conditioning[some], repeats=1
                )
            loss = self._held_out(net)["loss"]
        module.log("held_out/loss", loss, rank_zero_only=True)
