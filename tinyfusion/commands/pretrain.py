"""`tinyfusion pretrain`: train a backbone and write its averaged weights."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tinyfusion.callbacks.resume import RESUME_FILE
from tinyfusion.checkpoints import save_model
from tinyfusion.commands.check_scores import check_held_out
from tinyfusion.commands.checks import check_data
from tinyfusion.commands.setup import Setup
from tinyfusion.files import write_json
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.pipeline.devices import joined_ranks
from tinyfusion.training.pretrain import Pretraining
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


def main(cfg: DictConfig, folder: Path) -> None:
    """Run the command in ``folder``: ``model/`` with the averaged weights and ``metrics.json``."""
    setup = Setup(cfg, folder)
    if (folder / "model" / "config.json").is_file():
        log.info("pretrain: %s is finished", folder)
        return
    # Start weights are drawn from the global generator by torch's initialisers.
    torch.manual_seed(setup.seed)
    net = setup.new_backbone()
    check_data(net, setup.source, "backbone")
    check_held_out(cfg.data)
    setup.check_plan(net)
    evaluation = setup.evaluation
    settings = setup.settings("pretrain")
    revision = git_revision()
    held_out = HeldOutLoss(setup.process, *setup.source.held_out())
    module = Pretraining(
        net,
        settings.ema_decay,
        held_out,
        settings.held_out_every,
        **setup.shared("pretrain", net),
    )
    stage_folder = folder / "pretrain"
    setup.fit(module, "pretrain", stage_folder)
    setup.log_figures(stage_folder)
    group = joined_ranks(setup.trainer, setup.world)
    if group is None:
        return
    # Training leaves the network on the CPU, and as another object if it was divided.
    net = module.trained_net.to(setup.device)
    with module.ema.averaged(net):
        row: dict[str, Any] = {}
        if evaluation is not None:
            row = evaluation.score(
                net,
                setup.process,
                setup.source,
                progress=setup.bars and group.first,
                dtype=setup.dtype,
                group=group,
            )
        if not group.first:
            return
        if evaluation is None:
            row = setup.summary(net)
        protocol = {} if evaluation is None else evaluation.protocol()
        provenance: dict[str, Any] = {
            "command": _command(folder),
            "seed": setup.seed,
            "steps": settings.steps,
            "images_seen": settings.steps * settings.batch_size,
            "git_revision": revision,
            "version": __version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "skipped_steps": module.skipped_steps,
            "protocol": protocol,
            "metrics": row,
        }
        save_model(net, folder / "model", provenance)
    write_json(folder / "metrics.json", {"model": row, "protocol": protocol})
    setup.tracking.scores({f"model/{key}": value for key, value in row.items()})
    setup.tracking.finish()
    (stage_folder / RESUME_FILE).unlink(missing_ok=True)
    if "fid" in row:
        log.info("pretrain: FID %.3f", row["fid"])
    log.info("pretrain: held-out loss %.4f", row["held_out_loss"])
    log.info("pretrain: model in %s", folder / "model")


def _command(folder: Path) -> str | None:
    """The command line that started the run, as the job noted it."""
    file = folder / "command.txt"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None
