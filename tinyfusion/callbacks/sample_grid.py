"""How samples develop during training: the same noise at every recorded step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.errors import InputError
from tinyfusion.figures.grid import comparison_grid
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.generate import AUTOCAST, generate_images
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.tracking.of_lightning import log_picture
from tinyfusion.training.module import DenoiserTraining


class SampleGrid(Callback):
    """Draws one row of samples per recorded step, one column per class, with averaged weights.

    A network without classes has one column per example of its conditioning.

    The picture is written and logged anew at every record, so an interrupted run has one too.

    Args:
        every: optimiser steps between two rows; the last step always has one.
        sampler: how to sample.
        guidance: guidance of the samples.
        seed: seed of the noise, the same for all rows.
        columns: at most this many classes or examples.
        autoencoder: decoder of a model of latents; ``None`` for one of pixels.

    Raises:
        InputError: ``every`` or ``columns`` is below 1.
    """

    file = "samples_progress.png"

    def __init__(
        self,
        every: int,
        sampler: Sampler,
        guidance: Guidance = NO_GUIDANCE,
        seed: int = 0,
        columns: int = 10,
        autoencoder: Autoencoder | None = None,
    ) -> None:
        for name, value in (("every", every), ("columns", columns)):
            if value < 1:
                raise InputError(f"callbacks.sample_grid.{name}={value} must be at least 1")
        self.every, self.columns = every, columns
        self.sampler, self.guidance, self.seed = sampler, guidance, seed
        self.autoencoder = autoencoder
        self.rows: dict[int, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record where the phase begins."""
        self._record(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record if it is time."""
        step = trainer.global_step
        if step % self.every == 0 or step == trainer.max_steps:
            self._record(trainer, pl_module)

    def _record(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        assert isinstance(module, DenoiserTraining)
        if module.discards_network or step in self.rows:
            return
        with module.scored_net() as net, torch.no_grad():
            if net is None:  # a further rank, which only has to know that the step is recorded
                self.rows[step] = torch.empty(0)
                return
            columns = min(self.columns, net.num_classes or self.columns)
            self.rows[step] = generate_images(
                net,
                module.process,
                self.sampler,
                net.example_conditioning(columns),
                self.seed,
                self.guidance,
                self.autoencoder,
                dtype=AUTOCAST.get(trainer.precision),
            )
        pictures = {f"step {step}": row for step, row in sorted(self.rows.items())}
        path = comparison_grid(pictures, Path(trainer.default_root_dir) / self.file)
        for logger in trainer.loggers:
            log_picture(logger, "samples", path, step)

    def state_dict(self) -> dict[str, Any]:
        """Rows for the resume checkpoint."""
        return {"rows": dict(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of a resume checkpoint."""
        self.rows = dict(state_dict["rows"])
