"""A job: one folder, one configuration, one command; started by Hydra, alone or in a sweep.

What does the work is imported once the configuration is known to be right: a mistyped key is to be
named at once.
"""

from __future__ import annotations

import math
import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from tinyfusion.commands.same_run import refuse_another
from tinyfusion.errors import InputError
from tinyfusion.files import read_json
from tinyfusion.interrupts import Interrupted, end_with_parent
from tinyfusion.notices import repeated
from tinyfusion.ranks import clear_leftovers, is_first_rank
from tinyfusion.runtime.folder import (
    CONFIG_FILE,
    InUseError,
    claim,
    discard,
    existing_part,
    locked,
    stored,
    unclaim,
)
from tinyfusion.runtime.session import Session
from tinyfusion.settings.check import check
from tinyfusion.settings.commands import WHOLE
from tinyfusion.settings.optimized import check_search
from tinyfusion.settings.overrides import as_given, config_flags
from tinyfusion.settings.processes import agree_on_processes
from tinyfusion.tracking.keys import METRICS_FILE, flat_scores

session: Session | None = None
"""Set by the command line; ``None`` in processes that a parallel launcher started."""


class Folders(Callback):
    """Notes which folders exist before Hydra makes any; Hydra calls it (``conf/base.yaml``).

    Args:
        resuming: resume the runs that the jobs' folders hold.
        group: what loggers call the runs of a multirun together (`group_name`); default: the name
            of the folder they lie in.
    """

    def __init__(self, resuming: bool = False, group: str | None = None) -> None:
        self.resuming, self.group = resuming, group

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Note it for a single run.

        Raises:
            SystemExit: other processes were started than are asked for, so that none is to make a
                folder; Hydra would only warn of another exception.
        """
        if session is not None:
            try:
                agree_on_processes(config)
                _refuse_nameless(config, "hydra.run.dir")
            except InputError as error:
                session.refusal = error
                raise SystemExit(2) from None
            # Ranks that can't know the folder, and one that can't be made, are refused when Hydra
            # comes to it itself.
            with suppress(InterpolationResolutionError, OSError):
                session.existing = existing_part(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note it, and the folder, for a sweep.

        Raises:
            SystemExit: the folder has no name, or an optimiser has no figure to search by; Hydra
                would only warn of another exception.
        """
        if session is not None:
            try:
                _refuse_nameless(config, "hydra.sweep.dir")
                check_search(config)
            except InputError as error:
                session.refusal = error
                raise SystemExit(2) from None
            session.sweep = Path(config.hydra.sweep.dir).absolute()
            with suppress(OSError):
                session.existing = existing_part(session.sweep)


def _refuse_nameless(config: DictConfig, key: str) -> None:
    """Refuse an empty name, as of a shell's variable that is not set: it would mean some folder.

    Args:
        config: composed configuration.
        key: what names the folder that is to be made.

    Raises:
        InputError: that key or ``output_root`` is empty.
    """
    for name in ("output_root", key):
        with suppress(InterpolationResolutionError):
            if OmegaConf.select(config, name) == "":
                raise InputError(f"{name}= is empty; give a folder, or leave the key out")


def attempt(cfg: DictConfig) -> float | None:
    """Run a composed configuration; a failure is reported and does not end a sweep.

    Returns:
        The figure that ``optimized_metric`` names, for Hydra's sweeper; ``None`` without one and
        of a run that failed, which Hydra's optimisers count as a failed trial.
    """
    hydra = HydraConfig.get()
    if session is not None:
        session.begun = True
    # With hydra.job.chdir=true this is the run's folder by now; paths are relative to the other.
    os.chdir(hydra.runtime.cwd)
    sweep = Path(hydra.sweep.dir).absolute() if hydra.mode == RunMode.MULTIRUN else None
    # A user's own subfolders may be deeper, and alike in their last part.
    name = os.path.relpath(hydra.runtime.output_dir, sweep) if sweep else ""
    resuming = bool(hydra.callbacks.get("tinyfusion", {}).get("resuming", False))
    if session is None:
        # Elsewhere, so that its outcome is left where the command line finds it.
        assert sweep is not None
        clear_leftovers()
        end_with_parent()
        here = Session(quiet=True)
        found = _reported(here, name, cfg, resuming)
        if is_first_rank():
            here.leave(sweep, hydra.job.num)
        return found
    return _reported(session, name, cfg, resuming)


def _reported(session: Session, name: str, cfg: DictConfig, resuming: bool) -> float | None:
    """Run it, and read the figure to optimise from what it left.

    Where the runs that folders hold are resumed, other command lines may be at the same ones: a
    job that another process is doing has not failed.
    """
    found = None
    with session.reporting(name):
        try:
            start(cfg, resuming)
        except InUseError as error:
            if not resuming:
                raise
            print(f"{cfg.command}: skipped, as {error}")
            return None
        if cfg.get("optimized_metric") is not None and not cfg.get("dry_run"):
            found = _figure(Path(HydraConfig.get().runtime.output_dir), cfg.optimized_metric)
    return found


def _figure(folder: Path, metric: str) -> float:
    """A figure of a finished run.

    Raises:
        InputError: the run ended without it, or it is not finite.
    """
    scores = flat_scores(read_json(folder / METRICS_FILE, "metrics"))
    value = scores.get(metric, math.nan)
    if not math.isfinite(value):
        ended = f"is {value}" if metric in scores else f"is not among {', '.join(scores)}"
        raise InputError(f"optimized_metric={metric} {ended} in {folder / METRICS_FILE}")
    return value


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
    agree_on_processes(cfg)  # in a sweep this is the first time
    # Of a sweep the folder above belongs to other jobs as well.
    alone = hydra.mode != RunMode.MULTIRUN
    existing = session.existing if session is not None and alone else None
    if resuming and (folder / CONFIG_FILE).is_file():
        from tinyfusion.commands.resume import resume_run

        if hydra.job.chdir:
            os.chdir(folder)
        resume_run(str(cfg.command), folder)
        return
    try:
        cfg = _complete(cfg, hydra)
    except InputError:
        if is_first_rank():
            discard(folder, existing)
        raise
    if cfg.get("dry_run"):
        discard(folder, existing)
        if hydra.mode == RunMode.MULTIRUN:
            raise InputError("dry_run=true is about one run: leave -m and the lists of values out")
        if is_first_rank():
            from tinyfusion.commands import dry_run

            with repeated(f"{cfg.command}, dry run"):
                dry_run.start(cfg, as_given(hydra)[1])
        return
    first = is_first_rank()
    try:
        cfg = check(cfg, as_given(hydra)[1])
        config = OmegaConf.to_yaml(cfg)
        again = refuse_another(folder, config)
    except (InputError, Interrupted):
        if first:
            discard(folder, existing)
        raise
    if hydra.job.chdir:
        os.chdir(folder)
    if again:
        # A scheduler starts what it has interrupted with the same command.
        from tinyfusion.commands.resume import resume_run

        resume_run(str(cfg.command), folder, unasked=True)
        return
    from tinyfusion.commands.execute import execute

    if not first:
        # A further rank or machine of a run whose first one owns the folder.
        execute(cfg, folder)
        return
    with locked(folder) as lock:
        if stored(folder):
            raise InUseError(f"another process has begun a run in {folder}; start this one again")
        try:
            claim(folder, config, _command_line(str(cfg.command), hydra))
            execute(cfg, folder, lock)
        except InputError:
            unclaim(folder, existing)
            raise


def _complete(cfg: DictConfig, hydra: HydraConf) -> DictConfig:
    """The configuration with the groups that its checkpoint brings along.

    Raises:
        InputError: what was given does not go with them.
    """
    given = as_given(hydra)[1]
    keys = {text.lstrip("+~").partition("=")[0] for text in given}
    if "backbone" in keys or not keys & {"checkpoint", "models", *WHOLE}:
        return cfg  # defaults fit each other
    from tinyfusion.settings.brought import with_brought_along

    own = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    return with_brought_along(cfg, given, [Path(path) for path in own])
