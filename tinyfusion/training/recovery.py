"""Recovering a pruned network, with or without a teacher (TinyFusion, section 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tinyfusion.backbones.contract import Backbone, forward_with_states
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.stages import FirstStage
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.states import States
from tinyfusion.training.ema import Ema
from tinyfusion.training.module import DenoiserTraining, Prepared
from tinyfusion.training.schedules import progress


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
        self.ema = Ema(student, ema_decay, ema_warm_up)

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
        return found

    def notes(self) -> list[str]:
        """What is trained at first."""
        if self.first is None:
            return []
        return [self.first.summary(self.student, self._learning_rate.warm_up)]

    def on_fit_start(self) -> None:
        """Bring the teacher, which Lightning does not know, to the device."""
        super().on_fit_start()
        if self.teacher is not None:
            self.teacher.to(self.device)

    def step_losses(self, prepared: Prepared) -> dict[str, Tensor]:
        """Terms of the objective; both networks see the same input, times and conditioning."""
        seen = prepared.corrupted.inputs, prepared.conditioning
        out, states = forward_with_states(self.student, *seen, (a for a, _ in self.pairs))
        teacher_out: Tensor | None = None
        teacher_states: dict[int, States] = {}
        if self.teacher is not None and self.objective.uses_teacher:
            teacher_out, teacher_states = self.teacher(*seen, (b for _, b in self.pairs))
        return self.objective(
            self.process,
            prepared.corrupted,
            out,
            teacher_out,
            [(states[a], teacher_states[b]) for a, b in self.pairs],
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
