"""What learning a mask costs by cheaper steps, and whether it comes to the same choice."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tinyfusion.data.datamodule import Batch
from tinyfusion.figures.table import Column, Table
from tinyfusion.files import read_json, write_json
from tinyfusion.pruners.contract import calibration_images
from tinyfusion.studies.harvest import COST_FILE
from tinyfusion.studies.outcome import Outcome
from tinyfusion.studies.works import slug
from tinyfusion.studies.written import Report
from tinyfusion.training.mask_learning import MaskLearning

DENSE = "dense"
"""The published step, with which the others are compared."""


class TrainingCost(Callback):
    """Leaves in the phase's folder what its training cost: `COST_FILE`.

    Counted are seconds of the processor, of all threads, which other work on the machine changes
    less than it does those of a clock; those of a run that was interrupted are added up.
    """

    def __init__(self) -> None:
        self._began: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        if self._began is None:
            return
        file = Path(trainer.default_root_dir) / COST_FILE
        so_far = read_json(file, "cost")["seconds"] if file.is_file() else 0.0
        write_json(file, {"seconds": so_far + time.process_time() - self._began})

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop it, too, where training is interrupted."""
        self.on_train_end(trainer, pl_module)


def report(outcome: Outcome, folder: Path) -> Report:
    """A table for each teacher and budget.

    Args:
        outcome: a study whose rows have the labels ``cell`` and ``way``.
        folder: not used; there is no picture.

    Raises:
        InputError: no decision is complete.
    """
    rows = rows_of(outcome)
    parts: list[str | Table] = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        own = [row for row in rows if row["cell"] == cell]
        parts += [f"## {cell}\n", Table(*_table(own), slug(cell).lower())]
    return Report(parts)


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    """What each complete decision cost, and how it differs from that of the dense steps.

    Returns:
        By cell, way and seed: ``seconds``, ``times`` (seconds of the dense decision over these),
        ``steps``, ``kept``, and ``others``, the number of blocks that the dense decision does not
        keep; what lacks its dense decision has neither ``times`` nor ``others``.
    """
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for cell, record in outcome.complete():
        where, way = cell.row.labels["cell"], cell.row.labels["way"]
        found[where, way, cell.seed] = {
            "cell": where,
            "way": way,
            "seed": cell.seed,
            "seconds": record.results.get("cost", {}).get("seconds"),
            "steps": record.decision["scores"]["steps"],
            "kept": record.decision["kept"],
        }
    for (where, _, seed), row in found.items():
        dense = found.get((where, DENSE, seed))
        if dense is not None:
            row["others"] = len(set(row["kept"]) - set(dense["kept"]))
            if row["seconds"] and dense["seconds"]:
                row["times"] = dense["seconds"] / row["seconds"]
    return list(found.values())


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Column]]:
    """Means over seeds, a row for each way."""
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        line: dict[str, Any] = {"way": way, "seeds": len(own)}
        for name in ("seconds", "times", "steps"):
            values = [row[name] for row in own if row.get(name)]
            line |= {name: mean(values)} if values else {}
        others = [row["others"] for row in own if "others" in row]
        line["same"] = f"{others.count(0)} of {len(others)}"
        line["others"] = ", ".join(map(str, others))
        lines.append(line)
    columns = {
        "way": Column("steps"),
        "seeds": Column("seeds"),
        "seconds": Column("seconds of the processor", ".0f", "lower"),
        "times": Column("times as fast", ".2f", "higher"),
        "steps": Column("steps taken", ".0f"),
        "same": Column("same choice"),
        "others": Column("other blocks, by seed"),
    }
    return lines, columns


def gate_gradient_noise(
    module: MaskLearning, source: Any, shares: Sequence[float], batches: int, batch_size: int
) -> dict[float, float]:
    """How much the gates' gradient differs from batch to batch, over that of all dropped pairs.

    Args:
        module: gates and network, as they are at the step that is asked about.
        source: images.
        shares: shares of the dropped pairs that give a gradient.
        batches: how many batches, at least 2, the same for every share.
        batch_size: samples of each.

    Returns:
        By share the variance between batches, summed over the logits, over that of share 1.
    """
    images, conditioning = calibration_images(source, batches * batch_size, module.noise.seed)
    variances = {}
    before = module.gated.gate_gradients
    for share in (1.0, *shares):
        module.gated.gate_gradients = share
        found = []
        for step in range(batches):
            rows = slice(step * batch_size, (step + 1) * batch_size)
            batch = Batch(images[rows], conditioning[rows], step, 0, ())
            loss = module.step_losses(module.prepare(batch))["total"].mean()
            gradients = torch.autograd.grad(loss, list(module.gated.gates.parameters()))
            found.append(torch.cat([gradient.flatten() for gradient in gradients]))
        variances[share] = float(torch.stack(found).double().var(0).sum())
    module.gated.gate_gradients = before
    return {share: variances[share] / variances[1.0] for share in shares}
