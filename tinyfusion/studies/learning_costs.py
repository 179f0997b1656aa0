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
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.files import read_json, write_json, write_text
from tinyfusion.pruners.contract import calibration_images
from tinyfusion.studies.budgets import Cell
from tinyfusion.studies.digits import slug
from tinyfusion.studies.jobs import Job, decision_file
from tinyfusion.training.mask_learning import MaskLearning

DENSE = "dense"
STOP = "{_target_: tinyfusion.training.early_stop.EarlyStop, margin: 0.6}"

WAYS: dict[str, tuple[str, ...]] = {
    DENSE: ("pruner.dense=true",),
    "sparse": (),
    "1/2 of the gate gradients": ("pruner.gate_gradients=0.5",),
    "1/4 of the gate gradients": ("pruner.gate_gradients=0.25",),
    "1/10 of the gate gradients": ("pruner.gate_gradients=0.1",),
    "settled": ("pruner.settle=0.02",),
    "settled, stopped": ("pruner.settle=0.02", f"pruner.stop={STOP}"),
    "settled, stopped, 1/4": (
        "pruner.settle=0.02",
        f"pruner.stop={STOP}",
        "pruner.gate_gradients=0.25",
    ),
}
"""Ways of learning a mask, by their overrides; the first is the published step."""

CELLS = (
    Cell("digits", "keep=7"),
    Cell("digits", "keep=14"),
    Cell("sit_digits", "keep=10"),
    Cell("mar_digits", "keep=10"),
)
"""Teachers and budgets; thresholds were found with the seeds 10 to 12."""

COST_FILE = "cost.json"
COUNTED = "+callbacks.cost._target_=tinyfusion.studies.learning_costs.TrainingCost"


def plan(
    root: Path,
    seeds: Sequence[int],
    cells: Sequence[Cell] = CELLS,
    ways: Mapping[str, Sequence[str]] = WAYS,
) -> list[Job]:
    """One decision for each way, cell and seed; seed by seed, so that a part is fair.

    Args:
        root: folder of the study.
        seeds: seeds of the decisions.
        cells: teachers and budgets.
        ways: overrides by the name of the way.
    """
    return [
        Job(
            root / f"{slug(cell.name)}__{slug(way)}__seed{seed}",
            "prune",
            (f"checkpoint={cell.teacher}", cell.budget, *own, f"seed={seed}", COUNTED),
            way,
            cell.name,
            seed,
        )
        for seed in seeds
        for cell in cells
        for way, own in ways.items()
    ]


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


def _cost(folder: Path) -> float | None:
    (file, *_) = [*folder.rglob(COST_FILE), None]
    return None if file is None else float(read_json(file, "cost")["seconds"])


def report(root: Path, jobs: Sequence[Job]) -> str:
    """Write ``costs.md`` of what is finished; returns its text.

    Args:
        root: folder of the study.
        jobs: what belongs to it.

    Raises:
        InputError: no decision is finished.
    """
    rows = rows_of(jobs)
    if not rows:
        raise InputError(f"{root} holds no finished decision of the study yet")
    parts = []
    for cell in dict.fromkeys(job.recovery for job in jobs):
        parts += [f"## {cell}\n", markdown_table(*_table([r for r in rows if r["cell"] == cell]))]
    missing = sum(not job.done for job in jobs)
    if missing:
        parts.append(f"\nNot finished: {missing} of {len(jobs)} decisions.\n")
    text = "\n".join(parts)
    write_text(root / "costs.md", text)
    return text


def rows_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What each finished decision cost, and how it differs from that of the dense steps.

    Returns:
        By cell, way and seed: ``seconds``, ``times`` (seconds of the dense decision over these),
        ``steps``, ``kept``, and ``others``, the number of blocks that the dense decision does not
        keep; what lacks its dense decision has neither ``times`` nor ``others``.
    """
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for job in jobs:
        if not job.done:
            continue
        decision = Decision.load(decision_file(job.folder))
        found[job.recovery, job.pruner, job.seed] = {
            "cell": job.recovery,
            "way": job.pruner,
            "seed": job.seed,
            "seconds": _cost(job.folder),
            "steps": decision.scores["steps"],
            "kept": decision.kept,
        }
    for (cell, _, seed), row in found.items():
        dense = found.get((cell, DENSE, seed))
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
        "seconds": Column("seconds of the processor ↓", ".0f"),
        "times": Column("times as fast ↑", ".2f"),
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
