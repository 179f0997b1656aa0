"""How the choice of blocks develops while the mask is learned (Figures 6 and 9-11)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinyfusion.backbones.unit_view import seen_as_blocks
from tinyfusion.errors import InputError
from tinyfusion.figures.decision import DecisionRecord, decision_trace
from tinyfusion.files import write_text
from tinyfusion.training.mask_learning import DecisionState, MaskLearning
from tinyfusion.units import BLOCKS, Unit

ALL_UP_TO = 64
"""Groups of at most so many patterns are recorded with the probability of each."""

LIKELIEST = 5
"""Patterns recorded of larger groups."""


class DecisionTrace(Callback):
    """Records the decision while a mask is learned; draws and writes the records at the end.

    ``decision_trace.json`` is a list of records with ``step``; ``kept`` and ``kept_live``, the
    units by the averaged and by the live gates; of the averaged gates ``inclusion``, the
    probability that each unit stays, and ``margin`` (`GateState.margin`); and, where there are
    groups, one entry per group of ``probabilities``: pairs of pattern index (in lexicographic
    order of the kept positions) and probability, of all patterns of a group of up to 64 and of the
    five likeliest, likeliest first, of a larger one.

    Args:
        every: optimiser steps between two records.

    Attributes:
        records: the records so far, as they are written.

    Raises:
        InputError: ``every`` is below 1.
    """

    file = "decision.png"
    data_file = "decision_trace.json"

    def __init__(self, every: int = 5) -> None:
        if every < 1:
            raise InputError(f"callbacks.decision_trace.every={every} must be at least 1")
        self.every = every
        self.records: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the state of the choice."""
        step = trainer.global_step
        if not isinstance(pl_module, MaskLearning) or step == 0:
            return
        last = step == pl_module.total_steps or trainer.should_stop
        due = step % self.every == 0 or last
        if due and (not self.records or self.records[-1]["step"] != step):
            self.records.append(_record(step, pl_module.decision_state()))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figure beside the phase's other files and write the records beside it."""
        if (
            not isinstance(pl_module, MaskLearning)
            or not self.records
            or not trainer.is_global_zero
        ):
            return
        folder = Path(trainer.default_root_dir)
        lines = ",\n".join(json.dumps(record) for record in self.records)
        write_text(folder / self.data_file, f"[\n{lines}\n]\n")
        trace = [
            DecisionRecord(record["step"], tuple(record["kept"]), tuple(record["inclusion"]))
            for record in self.records
        ]
        units = pl_module.gated.units
        borders = seen_as_blocks(pl_module.gated.net, units).borders
        early = f"decided after {trace[-1].step:,} of {pl_module.total_steps:,} steps"
        decision_trace(
            trace,
            folder / self.file,
            _labels(units),
            borders,
            pl_module.gated.gates.group_starts,
            early if pl_module.ended_early else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Records, which are plain data, for the resume checkpoint."""
        return {"records": list(self.records)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the records of a resume checkpoint."""
        self.records = list(state_dict["records"])


def _labels(units: Sequence[Unit]) -> list[str] | None:
    """What rows are called: without the stack where there is one; ``None`` for plain blocks."""
    stacks = {unit.place.stack for unit in units}
    if len(stacks) > 1:
        return [unit.name for unit in units]
    if units[0].kind == BLOCKS:
        return None
    return [unit.name.removeprefix(f"{unit.place.stack}.") for unit in units]


def _record(step: int, state: DecisionState) -> dict[str, Any]:
    averaged, live = state
    record = {
        "step": step,
        "kept": list(averaged.kept),
        "kept_live": list(live.kept),
        "inclusion": list(averaged.inclusion),
        "margin": averaged.margin,
    }
    if averaged.groups:
        record["probabilities"] = [_pairs(probabilities) for probabilities in averaged.groups]
    return record


def _pairs(probabilities: Sequence[float]) -> list[list[float]]:
    pairs = [[pattern, probability] for pattern, probability in enumerate(probabilities)]
    if len(pairs) <= ALL_UP_TO:
        return pairs
    return sorted(pairs, key=lambda pair: -pair[1])[:LIKELIEST]
