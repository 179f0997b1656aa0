"""A job: one folder, one configuration, one command; started by Hydra or resumed from disk."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tinyfusion.errors import InputError
from tinyfusion.files import write_text
from tinyfusion.settings.compose import check
from tinyfusion.settings.schema import COMMANDS

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"


def start(cfg: DictConfig) -> None:
    """Run a freshly composed configuration in the folder that Hydra made for it.

    Raises:
        InputError: a wrong key or value, several devices inside a sweep, or a folder that
            already holds a run.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    cfg = check(cfg)
    if hydra.mode == RunMode.MULTIRUN and (cfg.trainer.get("devices") or 1) != 1:
        raise InputError(
            f"trainer.devices={cfg.trainer.devices} in a sweep: Lightning starts further ranks by "
            "running the same command line again, so each would run the whole sweep in a second "
            "folder; use one device per run, or start the runs one by one"
        )
    folder = Path(hydra.runtime.output_dir)
    config_file = folder / CONFIG_FILE
    try:
        # Whoever creates this file owns the folder.
        os.close(os.open(config_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise InputError(
            f"{folder} already holds a run; go on with it by resume={folder}, or choose another "
            "folder (hydra.run.dir=...)"
        ) from None
    write_text(config_file, OmegaConf.to_yaml(cfg))
    try:
        _run(cfg, folder)
    except InputError:
        # Refused before any work: leave no folder that looks like a run.
        if {entry.name for entry in folder.iterdir()} <= {CONFIG_FILE, "run.log", ".hydra"}:
            config_file.unlink()
        raise


def resume_folder(command: str, folder: Path) -> None:
    """Go on with an interrupted run, or with every run of an interrupted sweep.

    Raises:
        InputError: no such folder, no run in it, or a run of another command.
    """
    if not folder.is_dir():
        raise InputError(f"resume={folder}: there is no such folder")
    runs = [folder] if (folder / CONFIG_FILE).is_file() else []
    runs = runs or sorted(file.parent for file in folder.glob(f"*/{CONFIG_FILE}"))
    if not runs:
        raise InputError(f"resume={folder}: no {CONFIG_FILE} in it or in its subfolders")
    for run in runs:
        try:
            cfg = OmegaConf.load(run / CONFIG_FILE)
        except Exception as error:
            raise InputError(f"resume={run}: {CONFIG_FILE} can't be read: {error}") from None
        if not isinstance(cfg, DictConfig) or cfg.get("command") not in COMMANDS:
            raise InputError(f"resume={run}: {CONFIG_FILE} is not the configuration of a run")
        if cfg.command != command:
            raise InputError(
                f"resume={run} is a run of 'tinyfusion {cfg.command}'; "
                f"write 'tinyfusion {cfg.command} resume={run}'"
            )
        _run(check(cfg), run)


def _run(cfg: DictConfig, folder: Path) -> None:
    _log_to(folder)
    log.info("%s in %s", cfg.command, folder)
    stage = importlib.import_module(f"tinyfusion.stages.{cfg.command}")
    stage.main(cfg, folder)


def _log_to(folder: Path) -> None:
    """Messages of this package on the console and in ``run.log``."""
    logger = logging.getLogger("tinyfusion")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    file = logging.FileHandler(folder / "run.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in (console, file):
        logger.addHandler(handler)
