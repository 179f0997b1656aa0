"""Carrying out a checked configuration in its folder, here or in one process per device."""

from __future__ import annotations

import importlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from omegaconf import DictConfig

from tinyfusion.errors import InputError
from tinyfusion.files import write_json
from tinyfusion.ranks import is_first_rank, is_rank
from tinyfusion.settings.commands import COMMANDS, Sample, Training
from tinyfusion.settings.compose import build
from tinyfusion.stages.devices import needs_ranks
from tinyfusion.stages.folder import FINISHED_FILE
from tinyfusion.stages.launch import launch
from tinyfusion.stages.run_log import logged
from tinyfusion.version import __version__

log = logging.getLogger(__name__)


def execute(cfg: DictConfig, folder: Path, lock: TextIO | None = None) -> None:
    """Carry out a command.

    One that trains or samples on several devices runs in a process for each of them. They are
    started here, unless this process is one of them already.

    Args:
        cfg: checked configuration.
        folder: the run's folder.
        lock: file that holds the folder for this process, and for those that it starts.

    Raises:
        InputError: what is configured can't be done.
        TrainingDivergedError: training went astray.
        RanksFailedError: a process of a device ended otherwise.
    """
    shared = issubclass(COMMANDS[cfg.command], (Training, Sample))
    if is_rank():
        if shared or is_first_rank():
            work(cfg, folder)
    elif shared and needs_ranks(build(cfg.trainer)):
        launch(cfg, folder, lock)
    else:
        work(cfg, folder)


def work(cfg: DictConfig, folder: Path) -> None:
    """Carry out a command in this process; all that is said goes to the run's log as well."""
    with logged(folder):
        log.info("%s in %s", cfg.command, folder)
        stage = importlib.import_module(f"tinyfusion.stages.{cfg.command}")
        try:
            stage.main(cfg, folder)
            if is_first_rank():
                now = datetime.now(UTC).isoformat(timespec="seconds")
                write_json(folder / FINISHED_FILE, {"finished": now, "version": __version__})
        except InputError:
            raise
        except BaseException:
            log.error("%s stopped; go on with resume=%s", cfg.command, folder)
            raise
