"""Scores during training, of the averaged weights."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinyfusion.errors import InputError
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.module import DenoiserTraining

log = logging.getLogger(__name__)


class EvaluateDuringTraining(Callback):
    """Scores the stage's network every few optimiser steps and logs ``evaluate/fid`` and so on.

    Training is not touched: scoring draws from generators of its own, and the live weights come
    back bit for bit. Mask learning is left alone: its network is thrown away.

    Args:
        every: optimiser steps between two scores.
        evaluation: the sampling and scoring protocol.

    Raises:
        InputError: ``every`` is below 1.
    """

    def __init__(self, every: int, evaluation: Evaluation) -> None:
        if every < 1:
            raise InputError(f"callbacks.evaluate.every={every} must be at least 1")
        self.every, self.evaluation = every, evaluation
        self._last = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score if it is time; once per optimiser step."""
        step = trainer.global_step
        if isinstance(pl_module, MaskLearning) or step % self.every or step == self._last:
            return
        self._last = step
        if step == 0:
            return
        assert isinstance(pl_module, DenoiserTraining)
        with pl_module.scored_net() as net:
            if net is None:  # a further rank, which waits at the next step
                return
            row = self.evaluation.score(net, pl_module.process, trainer.datamodule.source)
        for logger in trainer.loggers:
            logger.log_metrics({f"evaluate/{name}": value for name, value in row.items()}, step)
        log.info(
            "evaluate: step %d, FID %.3f, held-out loss %.4f",
            step,
            row["fid"],
            row["held_out_loss"],
        )
