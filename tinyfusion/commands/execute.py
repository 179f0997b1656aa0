"""Carrying out a checked configuration in its folder, here or in one process per device."""

from __future__ import annotations

import importlib
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import torch
from omegaconf import DictConfig, OmegaConf

from tinyfusion.commands.encode import workers
from tinyfusion.errors import REPORTED, DiskError, InputError, refused_by_system, system_error
from tinyfusion.files import write_json
from tinyfusion.interrupts import Interrupted
from tinyfusion.notices import repeated
from tinyfusion.pipeline.devices import check_count, devices_per_node, needs_ranks
from tinyfusion.pipeline.machine import check_machine
from tinyfusion.pipeline.threads import set_threads
from tinyfusion.ranks import is_first_rank, is_rank
from tinyfusion.runtime.folder import FINISHED_FILE
from tinyfusion.runtime.launch import launch
from tinyfusion.runtime.run_log import logged
from tinyfusion.settings.commands import COMMANDS, Encode, Evaluate, Sample, Training
from tinyfusion.settings.compose import build
from tinyfusion.text import shell_word
from tinyfusion.training.settings import TrainerSettings
from tinyfusion.version import __version__, digest_of_versions, imported_modules, libraries

log = logging.getLogger(__name__)

SHARED = (Training, Sample, Evaluate, Encode)
"""Commands whose work is shared by ranks."""

RANK_MODULE = "tinyfusion.commands.rank"
"""What a rank that is started here runs; not imported, as it imports this module."""


def execute(cfg: DictConfig, folder: Path, lock: TextIO | None = None) -> None:
    """Carry out a command.

    One that trains, samples, scores or encodes on several devices runs in a process for each of
    them. They are started here, unless this process is one of them already.

    Args:
        cfg: checked configuration.
        folder: the run's folder.
        lock: file that holds the folder for this process, and for those that it starts.

    Raises:
        InputError: what is configured can't be done.
        TrainingDivergedError: ten steps in a row had no finite loss or gradient.
        RanksFailedError: a process of a device ended otherwise.
        DiskError: a file can't be written or read.
        Interrupted: the work was asked to stop.
    """
    try:
        if is_rank():
            if issubclass(COMMANDS[cfg.command], SHARED) or is_first_rank():
                work(cfg, folder)
            return
        count, num_nodes = _ranks(cfg)
        if not count:
            work(cfg, folder)
            return
        task = json.dumps({"folder": str(folder), "config": OmegaConf.to_yaml(cfg)})
        with repeated(cfg.command):  # what this process has noticed; its ranks say their own
            launch(RANK_MODULE, task, count, num_nodes, folder, lock)
    except Interrupted as stop:
        stop.resume = folder
        raise


def _ranks(cfg: DictConfig) -> tuple[int, int]:
    """How many ranks are to be started on this machine, and on how many machines.

    No ranks for a command that one process carries out alone.
    """
    kind = COMMANDS[cfg.command]
    if issubclass(kind, Encode):
        count = workers(cfg)
        check_count("trainer.devices" if cfg.workers is None else "workers", count)
        return (count if count > 1 else 0), 1
    settings: TrainerSettings = build(cfg.trainer)
    if not (issubclass(kind, SHARED) and needs_ranks(settings)):
        return 0, 1
    count = devices_per_node(settings)
    check_count("trainer.devices", count)
    check_machine(settings, None, torch.device("cpu"))
    return count, settings.num_nodes


def work(cfg: DictConfig, folder: Path) -> None:
    """Carry out a command in this process; all that is said goes to the run's log as well."""
    with logged(folder), repeated(cfg.command):
        log.info("%s in %s", cfg.command, folder)
        command = importlib.import_module(f"tinyfusion.commands.{cfg.command}")
        try:
            _prepare(cfg)
            began = time.monotonic()
            command.main(cfg, folder)
            if is_first_rank():
                write_json(folder / FINISHED_FILE, _end(time.monotonic() - began))
        except InputError:
            raise
        except Interrupted:
            raise
        except BaseException as error:
            log.error("%s stopped; continue with %s", cfg.command, shell_word("resume", folder))
            refused = system_error(error)
            if refused is not None and not isinstance(error, REPORTED):
                raise DiskError(refused_by_system(refused, folder)) from error
            raise


def _end(seconds: float) -> dict[str, Any]:
    """When a run ended, and by which code: what a study compares its records with."""
    modules = imported_modules()
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "seconds": round(seconds, 1),
        "libraries": libraries(),
        "code": digest_of_versions(modules),
        "modules": modules,
    }


def _prepare(cfg: DictConfig) -> None:
    """Set what holds for the whole process."""
    settings: TrainerSettings = build(cfg.trainer)
    set_threads(settings)
    # Nothing that matters draws from the global generators; this is for third-party code.
    torch.manual_seed(cfg.get("seed", 0))
