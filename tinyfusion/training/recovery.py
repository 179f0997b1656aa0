"""Recovering a pruned network, with or without a teacher (TinyFusion, section 4.4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tinyfusion.backbones.contract import Backbone, BlockRunner, predict, run_plain
from tinyfusion.processes.contract import batch_means
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.stages import FirstStage
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.states import States
from tinyfusion.training.ema import Ema
from tinyfusion.training.module import DenoiserTraining, Prepared
from tinyfusion.training.schedules import progress

log = logging.getLogger(__name__)


class Recovery(DenoiserTraining):
    """Train a pruned network: all of its weights, or at first only some of them.

    Args:
        student: the pruned network.
        teacher: the network to distil from, or ``None``.
        objective: weights and kinds of the loss terms.
        pairs: aligned (student block, teacher block) indices; used if the objective compares
            hidden states.
        ema_decay: decay per step of the averaged weights.
        pair_weights: weight of each pair's distance; ``None`` takes their mean.
        first: what is trained at first; ``None`` trains everything from the first step on.
        ema_warm_up: let the decay of the averaged weights grow over the first steps (see `Ema`).
        block_rates: share of the learning rate for each block of the student; ``None`` trains all
            alike.
        shared: arguments of `DenoiserTraining`.
    """

    trained = "student"

    def __init__(
        self,
        student: Backbone,
        teacher: FrozenTeacher | None,
        objective: Objective,
        pairs: list[tuple[int, int]],
        ema_decay: float,
        pair_weights: Sequence[float] | None = None,
        first: FirstStage | None = None,
        ema_warm_up: bool = True,
        block_rates: Sequence[float] | None = None,
        **shared: Any,
    ) -> None:
        if first is not None:
            rate = shared["learning_rate"]
            shared["learning_rate"] = replace(rate, restart=first.steps)
        super().__init__(**shared)
        self.student = student
        self.teacher = teacher
        self.objective = objective
        self.pairs = pairs if objective.uses_features else []
        self.pair_weights = None if pair_weights is None else list(pair_weights)
        self.first = first
        self.block_rates = None if block_rates is None else list(block_rates)
        self.ema = Ema(student, ema_decay, ema_warm_up)
        self._has_compared = False

    @property
    def averages(self) -> dict[str, tuple[Ema, Backbone]]:
        """The averaged student."""
        return {"student": (self.ema, self.student)}

    def record(self) -> dict[str, Any]:
        """What the student's provenance says of how it was trained."""
        found: dict[str, Any] = {"alignment": [list(pair) for pair in self.pairs]}
        if self.pair_weights is not None:
            found["feature_weights"] = self.pair_weights
        if self.first is not None:
            found["first_stage_steps"] = self.first.steps
        if self.block_rates is not None:
            found["block_rates"] = self.block_rates
        return found

    def notes(self) -> list[str]:
        """What is trained at first, and at which rates."""
        lines = []
        if self.first is not None:
            lines.append(self.first.summary(self.student, self._learning_rate.warm_up))
        if self.block_rates is not None:
            shares = ", ".join(f"{share:.3g}" for share in self.block_rates)
            lines.append(f"share of the learning rate for each block: {shares}")
        return lines

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group for each share of the learning rate; the base rate outside the blocks."""
        if self.block_rates is None:
            return super().parameter_groups()
        share_of = {
            id(p): share
            for block, share in zip(self.student.blocks, self.block_rates, strict=True)
            for p in block.parameters()
        }
        groups: dict[float, list[nn.Parameter]] = {}
        for p in self.student.parameters():
            if p.requires_grad:
                groups.setdefault(share_of.get(id(p), 1.0), []).append(p)
        base = self._learning_rate.peak
        return [{"params": found, "lr": base * share} for share, found in groups.items()]

    def on_fit_start(self) -> None:
        """Bring the teacher, which Lightning does not know, to the device."""
        super().on_fit_start()
        if self.teacher is not None:
            self.teacher.to(self.device)

    @property
    def watched(self) -> list[int]:
        """For each pair, the block of the network in training whose states are compared."""
        return [student for student, _ in self.pairs]

    def run_block(self) -> BlockRunner:
        """How the student's blocks are run in the step at hand."""
        return run_plain

    def step_losses(self, prepared: Prepared) -> dict[str, Tensor]:
        """Terms of the objective; both networks see the same input, times and conditioning."""
        terms = self._terms_of(prepared)
        if self.teacher is not None and self.teacher.is_rounded and not self._has_compared:
            self._has_compared = True
            if self.global_step == 0:  # not once more in a run that is resumed
                self._say_what_rounding_changes(prepared, terms)
        return terms

    def _say_what_rounding_changes(self, prepared: Prepared, terms: dict[str, Tensor]) -> None:
        """Log losses with the teacher in lower precision beside those with it in float32.

        Of the first micro-batch of the first device.
        """
        assert self.teacher is not None
        rounded, self.teacher.dtype = self.teacher.dtype, torch.float32
        self.noise.seed_layers(prepared.rows)
        with torch.no_grad():
            exact = batch_means(self._terms_of(prepared))
        self.teacher.dtype = rounded
        found = batch_means({name: value.detach() for name, value in terms.items()})
        if self.trainer.is_global_zero:
            log.info(
                "%s: the teacher in %s instead of float32 changes the first losses: %s",
                self.noise.phase,
                str(rounded).removeprefix("torch."),
                ", ".join(
                    f"{name} {float(exact[name]):.6g} by {float(value - exact[name]):+.1e}"
                    for name, value in found.items()
                ),
            )

    def _terms_of(self, prepared: Prepared) -> dict[str, Tensor]:
        seen = prepared.corrupted.inputs, prepared.conditioning
        teacher_out: Tensor | None = None
        teacher_states: list[States] = []
        if self.teacher is not None and self.objective.uses_teacher:
            wanted = [block for _, block in self.pairs]
            predicts = self.objective.output_weight > 0
            teacher_out, teacher_states = self.teacher(*seen, wanted, predicts)
        run_own, watched = self.run_block(), self.watched
        distances: dict[int, Tensor] = {}

        def run_block(index: int, block: nn.Module, states: States, condition: Any) -> States:
            out = run_own(index, block, states, condition)
            for pair, at in enumerate(watched):
                if at == index:
                    distances[pair] = self.objective.distance(out, teacher_states[pair])
            return out

        return self.objective(
            self.process,
            prepared.corrupted,
            predict(self.student, *seen, run_block),
            teacher_out,
            [distances[pair] for pair in range(len(watched))],
            progress(self.global_step, self.total_steps),
            self.pair_weights,
        )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip; in the first stage without the gradients of what is not trained yet.

        Without a gradient the optimiser leaves a tensor alone and allocates no state for it. All
        tensors keep ``requires_grad``, so that neither the strategies nor resume checkpoints need
        to know of stages.
        """
        if self.first is not None and self.global_step < self.first.steps:
            for name, parameter in self.student.named_parameters():
                if name not in self.first.names:
                    parameter.grad = None
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # -- resume ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the pairs' weights, too, which are measured once."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["tinyfusion"]["pair_weights"] = self.pair_weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        super().on_load_checkpoint(checkpoint)
        self.pair_weights = checkpoint["tinyfusion"].get("pair_weights", self.pair_weights)
