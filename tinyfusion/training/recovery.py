"""Recovering a pruned network, with or without a teacher (TinyFusion, section 4.4)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tinyfusion.backbones.contract import Backbone, forward_with_states
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.training.ema import Ema
from tinyfusion.training.module import DenoiserTraining, Prepared
from tinyfusion.training.schedules import progress


class Recovery(DenoiserTraining):
    """Train all weights of a shallow network.

    Args:
        student: the pruned network.
        teacher: the network to distil from, or ``None``.
        objective: weights and kinds of the loss terms.
        pairs: aligned (student block, teacher block) indices; used if the objective compares
            hidden states.
        ema_decay: decay per step of the averaged weights (with warm-up).
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
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.student = student
        self.teacher = teacher
        self.objective = objective
        self.pairs = pairs if objective.uses_features else []
        self.ema = Ema(student, ema_decay)

    @property
    def averages(self) -> dict[str, tuple[Ema, Backbone]]:
        """The averaged student."""
        return {"student": (self.ema, self.student)}

    def on_fit_start(self) -> None:
        """Bring the teacher, which Lightning does not know, to the device."""
        super().on_fit_start()
        if self.teacher is not None:
            self.teacher.to(self.device)

    def step_losses(self, prepared: Prepared) -> dict[str, Tensor]:
        """Terms of the objective; both networks see the same input, times and labels."""
        inputs = prepared.inputs
        out, states = forward_with_states(self.student, inputs, (a for a, _ in self.pairs))
        teacher_out, teacher_states = None, {}
        if self.teacher is not None and self.objective.uses_teacher:
            teacher_out, teacher_states = self.teacher(inputs, (b for _, b in self.pairs))
        return self.objective(
            self.process,
            prepared.corrupted,
            out,
            teacher_out,
            [(states[a], teacher_states[b]) for a, b in self.pairs],
            progress(self.global_step, self.total_steps),
        )
