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
from tinyfusion.errors import InputError
from tinyfusion.files import write_json
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.settings.compose import build
from tinyfusion.stages.setup import Setup
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
    if cfg.backbone is None:
        raise InputError("backbone= must be given to pretrain, for example backbone=dit_digits")
    if (folder / "model" / "config.json").is_file():
        log.info("pretrain: %s is finished", folder)
        return
    # Start weights are drawn from the global generator by torch's initialisers.
    torch.manual_seed(setup.seed)
    net = build(cfg.backbone)
    setup.check_data(net, "backbone")
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
    with module.ema.averaged(net):
        row = evaluation.score(net, setup.process, setup.source, progress=setup.bars)
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
            "protocol": evaluation.protocol(),
            "metrics": row,
        }
        save_model(net, folder / "model", provenance)
    write_json(folder / "metrics.json", {"model": row, "protocol": evaluation.protocol()})
    setup.tracking.scores({f"model/{key}": value for key, value in row.items()})
    setup.tracking.finish()
    (stage_folder / RESUME_FILE).unlink(missing_ok=True)
    log.info("pretrain: FID %.3f, held-out loss %.4f", row["fid"], row["held_out_loss"])
    log.info("pretrain: model in %s", folder / "model")


def _command(folder: Path) -> str | None:
    """The command line that started the run, as the job noted it."""
    file = folder / "command.txt"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None
