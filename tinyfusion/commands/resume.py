"""Resuming what was interrupted: one run, all runs in a folder, or a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tinyfusion.commands.execute import execute
from tinyfusion.errors import InputError
from tinyfusion.files import clear_torn
from tinyfusion.interrupts import Interrupted
from tinyfusion.ranks import is_first_rank, is_rank
from tinyfusion.runtime.folder import CONFIG_FILE, FINISHED_FILE, locked
from tinyfusion.runtime.session import SWEEP_FILE, Session
from tinyfusion.settings.check import check
from tinyfusion.settings.commands import COMMANDS
from tinyfusion.settings.overrides import as_given, config_flags, quote
from tinyfusion.settings.processes import agree_on_processes
from tinyfusion.text import shell_word

_RESUMING = "hydra.callbacks.tinyfusion.resuming="
_OWN = ("hydra.sweep.dir=", "hydra.mode=", _RESUMING)
"""Overrides that this package adds to a resumed sweep."""


@dataclass(frozen=True)
class StoredSweep:
    """How a sweep was started.

    Attributes:
        arguments: flags and overrides that run it again in its folder.
        cwd: the folder where it was started.
    """

    arguments: list[str]
    cwd: Path


def stored_sweep(command: str, folder: Path) -> StoredSweep | None:
    """The sweep of a folder; ``None`` if it is the folder of no sweep.

    Raises:
        InputError: the sweep is one of another command, or its file can't be read.
    """
    file = folder / SWEEP_FILE
    if not file.is_file():
        return None
    try:
        hydra = OmegaConf.load(file).hydra
        found = hydra.job.config_name
        flags = config_flags(hydra)
        settings, task = as_given(hydra)
        cwd = Path(hydra.runtime.cwd)
    except Exception as error:
        raise InputError(f"resume={folder}: {SWEEP_FILE} can't be read: {error}") from None
    if found != command:
        raise InputError(_other_command(folder, found))
    again = [f"hydra.sweep.dir={quote(str(folder.absolute()))}", f"{_RESUMING}true"]
    kept = [text for text in settings if not text.startswith(_OWN)]
    return StoredSweep(["-m", *flags, *task, *kept, *again], cwd)


def resume_folder(command: str, folder: Path) -> int:
    """Resume an interrupted run, or every run in the folder.

    Returns:
        Exit status; failures have been reported, and the other runs were resumed all the same.

    Raises:
        InputError: no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise InputError(f"resume={folder}: there is no such folder")
    runs = [folder] if (folder / CONFIG_FILE).is_file() else []
    runs = runs or sorted(file.parent for file in folder.glob(f"*/{CONFIG_FILE}"))
    if not runs:
        raise InputError(f"resume={folder}: no {CONFIG_FILE} in it or in its subfolders")
    several = Session()
    try:
        for run in runs:
            with several.reporting(run.name if len(runs) > 1 else ""):
                resume_run(command, run)
    except Interrupted as stop:
        stop.resume = folder
        raise
    return several.close()


def resume_run(command: str, folder: Path, unasked: bool = False) -> None:
    """Resume one interrupted run.

    Args:
        command: the command, which is to be the run's.
        folder: the run's folder.
        unasked: whether a start turned out to be a resumption, which is said.

    Raises:
        InputError: no configuration of a run, a run of another command, one that another process
            is working on, or other processes than it asks for.
    """
    try:
        cfg = OmegaConf.load(folder / CONFIG_FILE)
    except Exception as error:
        raise InputError(f"resume={folder}: {CONFIG_FILE} can't be read: {error}") from None
    if not isinstance(cfg, DictConfig) or cfg.get("command") not in COMMANDS:
        raise InputError(f"resume={folder}: {CONFIG_FILE} is not the configuration of a run")
    if cfg.command != command:
        raise InputError(_other_command(folder, cfg.command))
    agree_on_processes(cfg)
    finished = (folder / FINISHED_FILE).is_file()
    if not is_first_rank():
        # The first rank holds the folder.
        if not finished:
            execute(check(cfg), folder)
        return
    if finished:
        print(f"{command}: {folder} is finished; nothing to do")
        return
    with locked(folder) as lock:
        if unasked:
            print(f"{command}: continues the interrupted run in {folder}")
        # Ranks that something else started are at work already: theirs are not torn.
        if not is_rank():
            clear_torn(folder)
        execute(check(cfg), folder, lock)


def _other_command(folder: Path, command: str) -> str:
    return (
        f"resume={folder} is a run of 'tinyfusion {command}'; "
        f"write tinyfusion {command} {shell_word('resume', folder)}"
    )
