"""How the choice of blocks develops while the mask is learned (Figures 6 and 9-11)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinyfusion.errors import InputError
from tinyfusion.figures.decision import DecisionTrace as Record
from tinyfusion.figures.decision import decision_trace
from tinyfusion.training.mask_learning import MaskLearning


class DecisionTrace(Callback):
    """Records the decision while a mask is learned and draws it at the end.

    Args:
        every: optimiser steps between two records.
    """

    file = "decision.png"

    def __init__(self, every: int = 5) -> None:
        if every < 1:
            raise InputError(f"callbacks.decision_trace.every={every} must be at least 1")
        self.every = every
        self.records: list[Record] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the state of the choice."""
        step = trainer.global_step
        if not isinstance(pl_module, MaskLearning) or step == 0:
            return
        last = step == pl_module.total_steps
        if (step % self.every == 0 or last) and (not self.records or self.records[-1].step != step):
            state = pl_module.decision_state()
            self.records.append(Record(step, state.kept, tuple(state.confidence)))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figure beside the stage's other files."""
        if (
            not isinstance(pl_module, MaskLearning)
            or not self.records
            or not trainer.is_global_zero
        ):
            return
        groups = [tuple(group.blocks) for group in pl_module.gated.gates.scheme.groups]
        decision_trace(self.records, groups, Path(trainer.default_root_dir) / self.file)

    def state_dict(self) -> dict[str, Any]:
        """Records as plain data for the resume checkpoint."""
        return {"records": [[r.step, list(r.kept), list(r.confidence)] for r in self.records]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the records of a resume checkpoint."""
        self.records = [
            Record(step, tuple(kept), tuple(confidence))
            for step, kept, confidence in state_dict["records"]
        ]
