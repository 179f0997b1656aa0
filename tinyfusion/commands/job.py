"""A job: one folder, one configuration, one command; started by Hydra, alone or in a sweep.

What does the work is imported once the configuration is known to be right: a mistyped key is to be
named at once.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from tinyfusion.errors import InputError
from tinyfusion.files import write_text
from tinyfusion.ranks import is_first_rank
from tinyfusion.runtime.folder import (
    COMMAND_FILE,
    CONFIG_FILE,
    claim,
    discard,
    existing_part,
    locked,
    unclaim,
)
from tinyfusion.runtime.session import Session
from tinyfusion.settings.check import check
from tinyfusion.settings.overrides import as_given, config_flags

session: Session | None = None
"""Set by the command line; ``None`` in processes that a parallel launcher started."""


class Folders(Callback):
    """Notes which folders exist before Hydra makes any; Hydra calls it (``conf/base.yaml``).

    Args:
        resuming: resume the runs that the jobs' folders hold.
    """

    def __init__(self, resuming: bool = False) -> None:
        self.resuming = resuming

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Note it for a single run."""
        if session is not None:
            # Ranks that can't know the folder are refused when Hydra asks for it itself.
            with suppress(InterpolationResolutionError):
                session.existing = existing_part(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note it, and the folder, for a sweep."""
        if session is not None:
            session.sweep = Path(config.hydra.sweep.dir).absolute()
            session.existing = existing_part(session.sweep)


def attempt(cfg: DictConfig) -> None:
    """Run a composed configuration; a failure is reported and does not end a sweep."""
    hydra = HydraConfig.get()
    # With hydra.job.chdir=true this is the run's folder by now; paths are relative to the other.
    os.chdir(hydra.runtime.cwd)
    sweep = Path(hydra.sweep.dir).absolute() if hydra.mode == RunMode.MULTIRUN else None
    # A user's own subfolders may be deeper, and alike in their last part.
    name = os.path.relpath(hydra.runtime.output_dir, sweep) if sweep else ""
    resuming = bool(hydra.callbacks.get("tinyfusion", {}).get("resuming", False))
    if session is None:
        # Elsewhere, so that its outcome is left where the command line finds it.
        assert sweep is not None
        _end_with_parent()
        here = Session(quiet=True)
        with here.reporting(name):
            start(cfg, resuming)
        if is_first_rank():
            here.leave(sweep, hydra.job.num)
        return
    with session.reporting(name):
        start(cfg, resuming)


@cache
def _end_with_parent() -> None:
    """End this process when the one that started it is gone: a killed sweep leaves none behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _command_line(command: str, hydra: Any) -> str:
    """The command that composes this run's configuration, from whichever folder it is given."""
    own, task = as_given(hydra)
    searched = [text for text in own if text.startswith("hydra.searchpath=")]
    return shlex.join(["tinyfusion", command, *config_flags(hydra), *task, *searched])


def start(cfg: DictConfig, resuming: bool = False) -> None:
    """Run a freshly composed configuration in the folder that Hydra made for it.

    Args:
        cfg: composed configuration.
        resuming: resume the run that the folder holds, if it holds one.

    Raises:
        InputError: a wrong key or value, or a folder that already holds a run.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    # Of a sweep the folder above belongs to other jobs as well.
    alone = hydra.mode != RunMode.MULTIRUN
    existing = session.existing if session is not None and alone else None
    if resuming and (folder / CONFIG_FILE).is_file():
        from tinyfusion.commands.resume import resume_run

        if hydra.job.chdir:
            os.chdir(folder)
        resume_run(str(cfg.command), folder)
        return
    if cfg.get("dry_run"):
        discard(folder, existing)
        if hydra.mode == RunMode.MULTIRUN:
            raise InputError("dry_run=true is about one run: leave -m and the lists of values out")
        if is_first_rank():
            from tinyfusion.commands import dry_run

            dry_run.start(cfg, as_given(hydra)[1])
        return
    first = is_first_rank()
    try:
        cfg = check(cfg, as_given(hydra)[1])
        if first:
            claim(folder)
    except InputError:
        if first:
            discard(folder, existing)
        raise
    from tinyfusion.commands.execute import execute

    if hydra.job.chdir:
        os.chdir(folder)
    if not first:
        # A further rank or machine of a run whose first one owns the folder.
        execute(cfg, folder)
        return
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(cfg))
    write_text(folder / COMMAND_FILE, _command_line(str(cfg.command), hydra) + "\n")
    with locked(folder) as lock:
        try:
            execute(cfg, folder, lock)
        except InputError:
            unclaim(folder, existing)
            raise
