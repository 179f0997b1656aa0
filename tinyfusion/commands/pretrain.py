"""`tinyfusion pretrain`: train a backbone and write its averaged weights."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tinyfusion.checkpoints import save_model
from tinyfusion.commands.check_scores import check_held_out
from tinyfusion.commands.checks import check_data
from tinyfusion.commands.loading import (
    check_scoring,
    check_training,
    new_backbone,
    runner_of,
    start_tracking,
    summary,
    trained_with,
)
from tinyfusion.files import write_json
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.pipeline.devices import joined_ranks
from tinyfusion.pipeline.pretraining import PRETRAIN, pretraining_phase
from tinyfusion.pipeline.recovering import Recovered
from tinyfusion.pipeline.runner import forget
from tinyfusion.settings.objects import objects_of
from tinyfusion.tracking.keys import METRICS_FILE
from tinyfusion.version import __version__

log = logging.getLogger(__name__)


def git_revision() -> str | None:
    """Revision of the checkout this package runs from, with a mark if it has local changes."""
    here = Path(__file__).resolve().parent
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip()


MODEL = "model"
MODELS = (MODEL,)
"""Model folders that the command writes."""
SCORED = (MODEL,)
"""Models that it scores."""


def main(cfg: DictConfig, folder: Path) -> None:
    """Run the command in ``folder``: ``model/`` with the averaged weights and ``metrics.json``."""
    objects = objects_of(cfg)
    if (folder / MODEL / "config.json").is_file():
        log.info("pretrain: %s is finished", folder)
        return
    # Start weights are drawn from the global generator by torch's initialisers.
    torch.manual_seed(objects.seed)
    net = new_backbone(objects)
    check_data(net, objects.source, "backbone")
    check_held_out(objects.held_out)
    check_scoring(objects, net)
    check_training(objects, net)
    revision = git_revision()
    tracking = start_tracking(objects, folder)
    runner = runner_of(objects, tracking)
    held_out = HeldOutLoss(objects.process, *objects.source.held_out())
    own = folder / "pretrain"
    (module,) = runner.run([pretraining_phase(runner, net, held_out)], own).values()
    group = joined_ranks(objects.trainer, objects.devices)
    settings = runner.settings(PRETRAIN)
    outcome = Recovered(module, settings.steps, settings.steps * settings.batch_size)
    evaluation = objects.evaluation
    # Training leaves the network on the CPU, and as another object if it was sharded.
    outcome.net.to(objects.device)
    with outcome.averaged() as net:
        row: dict[str, Any] = {}
        if evaluation is not None:
            row = evaluation.score(
                net,
                objects.process,
                objects.source,
                progress=objects.bars and group.first,
                dtype=objects.dtype,
                group=group,
            )
        if not group.first:
            return
        if evaluation is None:
            row = summary(objects, net)
        protocol = {} if evaluation is None else evaluation.protocol()
        provenance: dict[str, Any] = {
            "command": _command(folder),
            "seed": objects.seed,
            "steps": outcome.steps,
            "images_seen": outcome.images,
            "git_revision": revision,
            "version": __version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "skipped_steps": module.skipped_steps,
            "protocol": protocol,
            "metrics": row,
            **trained_with(objects),
        }
        save_model(net, folder / MODEL, provenance)
    write_json(folder / METRICS_FILE, {"model": row, "protocol": protocol})
    tracking.scores({f"model/{key}": value for key, value in row.items()})
    tracking.finish()
    forget(own)
    if "fid" in row:
        log.info("pretrain: FID %.3f", row["fid"])
    log.info("pretrain: held-out loss %.4f", row["held_out_loss"])
    log.info("pretrain: model in %s", folder / MODEL)


def _command(folder: Path) -> str | None:
    """The command line that started the run, as the job noted it."""
    file = folder / "command.txt"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None
