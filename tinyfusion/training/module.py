"""What pre-training, mask learning and recovery share.

Random draws, skipping of steps that are not finite, averages, and the state for resuming.

Shape suffixes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tinyfusion.conditioning import Conditioning
from tinyfusion.data.datamodule import Batch
from tinyfusion.errors import TrainingDivergedError
from tinyfusion.interrupts import asked
from tinyfusion.notices import tally
from tinyfusion.processes.contract import Corrupted, Process, batch_means
from tinyfusion.ranks import is_first_rank
from tinyfusion.seeding import Rows, StepDraws, StepNoise
from tinyfusion.training.networks import TrainedNetworks
from tinyfusion.training.schedules import LearningRate
from tinyfusion.training.sharding import full

OptimizerPartial = Callable[[Iterable[dict[str, Any]]], Optimizer]
"""What `conf/optimizer/*.yaml` builds: an optimiser that still lacks its parameter groups."""

MAX_SKIPPED_IN_A_ROW = 10
_SKIPPED = "were skipped: loss or gradient not finite"


class Prepared(NamedTuple):
    """What the networks see in one step.

    Attributes:
        corrupted: what the process made of clean data.
        conditioning: what is left after dropping; teacher and student get the same.
        rows: which rows of the global batch these are.
    """

    corrupted: Corrupted
    conditioning: Conditioning
    rows: Rows


class DenoiserTraining(TrainedNetworks):
    """Base of the three training phases; a phase adds its loss and its parameter groups.

    Every random number is drawn from (seed, phase, step, position), and the learning rate and all
    schedules are functions of the step. A step whose loss or gradient is not finite is skipped, on
    all ranks together: weights, the optimiser's moments and the moving averages stay as they are;
    the step still counts, so that schedules and draws continue as if it had been taken.

    Args:
        process: the process.
        noise: source of all draws of this phase.
        total_steps: optimiser steps of the run.
        optimizer: makes the optimiser from parameter groups.
        learning_rate: base rate over the run.
        clip_norm: largest global gradient norm; larger gradients are scaled down.
        label_drop: probability with which a sample's conditioning (its label) is replaced by the
            network's null.

    Attributes:
        grad_norm: global norm of the last step's gradient before clipping, on its device.
        asked_to_stop: of several ranks, number of the signal that asked one of them to stop, as
            known in the step at hand; 0 for none.
    """

    leaves_unused: bool = False
    """Whether there are steps in which trained tensors take no part, as DDP has to know."""

    def __init__(
        self,
        process: Process,
        noise: StepNoise,
        total_steps: int,
        optimizer: OptimizerPartial,
        learning_rate: LearningRate,
        clip_norm: float,
        label_drop: float,
    ) -> None:
        super().__init__()
        self.process = process
        self.noise = noise
        self.total_steps = total_steps
        self.clip_norm = clip_norm
        self.label_drop = label_drop
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self._optimizer = optimizer
        self._learning_rate = learning_rate
        self._loss_is_finite: Tensor | bool = True
        self._skips_step = False
        self.grad_norm = torch.zeros(())
        self.asked_to_stop = 0
        self._last_step = 0
        self._terms: dict[str, Tensor] = {}
        self._num_micro = 0
        # A resume checkpoint holds only what is trained (see on_save_checkpoint).
        self.strict_loading = False

    # -- what a phase provides ---------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups with their own ``lr`` where it is not the base rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def step_losses(self, prepared: Prepared) -> dict[str, Tensor]:
        """Per-sample loss terms, each (B,); ``total`` is what is minimised."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """Further lines for the log before the phase begins."""
        return []

    def after_step(self) -> None:
        """Called once per optimiser step, when the averages have taken it; may log."""

    # -- one step ----------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> Prepared:
        """Draw what is dropped and all that the process asks for, and corrupt a batch."""
        rows = batch.rows
        draws = StepDraws(self.noise, rows, batch.images.device)
        conditioning = batch.conditioning
        if self.label_drop > 0:
            drop_B = draws.uniform("label_drop") < self.label_drop
            conditioning = conditioning.drop(drop_B, self.trained_net)
        return Prepared(self.process.corrupt(batch.images, draws), conditioning, rows)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a micro-batch."""
        self.noise.seed_layers(batch.rows)
        terms = batch_means(self.step_losses(self.prepare(batch)))
        loss = terms["total"]
        # Stays on the device: only the end of the step asks for it.
        self._loss_is_finite = torch.isfinite(loss.detach()) & self._loss_is_finite
        # Summed up for the log, which shows means over the global batch.
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + value.detach()
        self._num_micro += 1
        return loss

    @property
    def logs_now(self) -> bool:
        """Whether the step just taken is one of those that are logged."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # of its loggers
        return self.global_step % every == 0 or self.global_step == self.total_steps

    def _log_terms(self) -> None:
        """Log the mean loss terms of the global batch; all ranks call this at the same steps."""
        names = list(self._terms)
        means = torch.stack([self._terms[name] for name in names]) / self._num_micro
        values = self.trainer.strategy.reduce(means, reduce_op="mean").tolist()
        terms = dict(zip(names, values, strict=True))
        self.log_dict({"train/loss": terms.pop("total")})
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        self.log("train/skipped_steps", float(self.skipped_steps))
        self.log("train/grad_norm", torch.nan_to_num(self.grad_norm, posinf=0.0))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the global norm, or drop all gradients if the step is not finite.

        Under float16 with a gradient scaler only the loss is judged: overflowing gradients are
        how the scaler finds its scale, and it leaves those steps out itself.
        """
        scaler = self._scaler
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            # Lightning leaves it to a fused optimiser, which would do it behind the clipping.
            scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = full(nn.utils.clip_grad_norm_(parameters, self.clip_norm)).detach()
        finite = self._loss_is_finite
        if scaler is None:
            finite = torch.isfinite(norm) & finite
        self._loss_is_finite, self.grad_norm = True, norm
        finite = self._agree(torch.as_tensor(finite, device=norm.device))
        self._skips_step = not finite
        if finite:
            self.skipped_in_a_row = 0
        else:
            # Without gradients the optimiser's step is the identity, moments included.
            for parameter in parameters:
                parameter.grad = None
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            self._tally(_SKIPPED, f"step {self.global_step + 1}")
            if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise TrainingDivergedError(
                    f"the loss was not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row, up to "
                    f"step {self.global_step}; the weights are those of the last good step and "
                    "the last resume checkpoint was kept. Lower the learning rate"
                )

    def _agree(self, finite: Tensor) -> bool:
        """Whether a step is finite on all ranks: here, and nowhere else, it waits for its device.

        The loss is local to a rank: one bad rank makes every rank skip. The same message says
        whether one was asked to stop.
        """
        if self.trainer.world_size == 1:
            return bool(finite)
        said = torch.stack([(~finite).int(), torch.tensor(asked(), device=finite.device).int()])
        bad, self.asked_to_stop = self.trainer.strategy.reduce(said, reduce_op="max").tolist()
        return not bad

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler of training in float16."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _tally(self, what: str, detail: str, count: int = 1) -> None:
        """Count steps that were not taken, numbered from 1; all ranks notice them alike."""
        if is_first_rank():
            tally(f"step(s) of {self.noise.phase} {what}", count, detail)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step and let the averages take it, unless it is skipped.

        Done here, as Lightning calls ``on_train_batch_end`` of callbacks before the module's: they
        would save and draw averages that lack the step.
        """
        scaler = self._scaler
        step, scale = self.global_step + 1, 0.0 if scaler is None else scaler.get_scale()
        super().optimizer_step(*args, **kwargs)
        if scaler is not None and scaler.get_scale() < scale:
            self._tally("were left out by the gradient scaler: overflow", f"step {step}")
        if self._skips_step:
            return
        for ema, module in self.averages.values():
            ema.update(module)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the loss and call `after_step`, once per optimiser step."""
        if self.global_step != self._last_step:  # else a micro-batch of an accumulated step
            self._last_step = self.global_step
            if self.logs_now:
                self._log_terms()
            self._terms, self._num_micro = {}, 0
            self.after_step()

    def on_train_start(self) -> None:
        """Note where the run begins: only now is the step of a resumed run known."""
        self._last_step = self.global_step

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser and its per-step schedule."""
        optimizer = self._optimizer(self.parameter_groups())
        schedule = LambdaLR(
            optimizer, lambda step: self._learning_rate.factor(step, self.total_steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    # -- resume ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained tensors and averages only: no frozen base, no teacher."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in trained
        }
        checkpoint["tinyfusion"] = {
            "averages": {name: ema.state_dict() for name, (ema, _) in self.averages.items()},
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        assert trained == set(checkpoint["state_dict"])
        state = checkpoint["tinyfusion"]
        for name, (ema, _) in self.averages.items():
            ema.load_state_dict(state["averages"][name])
        self.skipped_steps = state["skipped_steps"]
        if self.skipped_steps:
            self._tally(_SKIPPED, "before the run was resumed", self.skipped_steps)
        self.skipped_in_a_row = state["skipped_in_a_row"]
