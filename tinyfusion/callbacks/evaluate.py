"""Scores of the averaged weights during training, and the model that scored best."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinyfusion.backbones.contract import Backbone
from tinyfusion.checkpoints import save_model
from tinyfusion.errors import InputError
from tinyfusion.files import restore_folder, write_folder_atomic
from tinyfusion.group import current
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.samplers.generate import AUTOCAST
from tinyfusion.training.module import DenoiserTraining

log = logging.getLogger(__name__)

BEST = "best"
"""In a phase's folder: the model whose averaged weights had the lowest FID."""


class EvaluateDuringTraining(Callback):
    """Scores the phase's network every few optimiser steps and logs ``evaluate/fid`` and so on.

    All ranks share the sampling. Of few samples FID is higher than of many: compare it along a
    run, not with final scores. The model of lowest FID is kept in ``best/``. Training is not
    touched: scoring draws from generators of its own, and the live weights come back bit for bit.
    Mask learning is left alone: its network is thrown away.

    Args:
        every: optimiser steps between two scores; the last step always has one.
        evaluation: the sampling and scoring protocol.
        keep_best: keep the model of lowest FID so far.

    Attributes:
        history: scores by step.

    Raises:
        InputError: ``every`` is below 1.
    """

    def __init__(self, every: int, evaluation: Evaluation, keep_best: bool = True) -> None:
        if every < 1:
            raise InputError(f"callbacks.evaluate.every={every} must be at least 1")
        self.every, self.evaluation, self.keep_best = every, evaluation, keep_best
        self.history: dict[int, dict[str, float]] = {}

    @property
    def best_step(self) -> int | None:
        """Step of lowest FID so far; ``None`` before the first score, and where there is no FID."""
        fids = {step: row.get("fid", math.nan) for step, row in self.history.items()}
        known = {step: fid for step, fid in fids.items() if math.isfinite(fid)}
        return min(known, key=known.__getitem__) if known else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the best model its name back if the run was killed while it was replaced."""
        if trainer.is_global_zero:
            restore_folder(Path(trainer.default_root_dir) / BEST)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score if it is time; once per optimiser step."""
        step = trainer.global_step
        due = step > 0 and (step % self.every == 0 or step == trainer.max_steps)
        assert isinstance(pl_module, DenoiserTraining)
        if pl_module.discards_network or not due or step in self.history:
            return
        with pl_module.scored_net(all_ranks=True) as net:
            assert net is not None
            dtype = AUTOCAST.get(trainer.precision)
            source = trainer.datamodule.source  # type: ignore[attr-defined]  # set by `fit`
            row = self.evaluation.score(
                net, pl_module.process, source, dtype=dtype, group=current()
            )
            self.history[step] = row
            if not trainer.is_global_zero:
                return
            if self.keep_best and self.best_step == step:
                self._keep(net, step, Path(trainer.default_root_dir) / BEST)
        logged = {f"evaluate/{name}": value for name, value in row.items()}
        best = self.best_step
        if best is not None:
            logged["evaluate/best_fid"] = self.history[best]["fid"]
        for logger in trainer.loggers:
            logger.log_metrics(logged, step)
        log.info(
            "evaluate: step %d, FID-%d %.3f%s, held-out loss %.4f",
            step,
            self.evaluation.num_samples,
            row.get("fid", math.nan),
            "" if best is None or best == step else f" (least {logged['evaluate/best_fid']:.3f})",
            row["held_out_loss"],
        )

    def _keep(self, net: Backbone, step: int, folder: Path) -> None:
        provenance = {
            "weights": "averaged",
            "step": step,
            "chosen_by": f"least FID-{self.evaluation.num_samples} during training",
            "protocol": self.evaluation.protocol(),
            "metrics": self.history[step],
        }
        write_folder_atomic(folder, lambda new: save_model(net, new, provenance))

    def state_dict(self) -> dict[str, Any]:
        """Scores for the resume checkpoint."""
        return {"history": {step: dict(row) for step, row in self.history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the scores of a resume checkpoint."""
        self.history = dict(state_dict["history"])
