"""A job: one folder, one configuration, one command; started by Hydra or resumed from disk."""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from omegaconf import DictConfig, OmegaConf

from tinyfusion.errors import InputError
from tinyfusion.files import write_json, write_text
from tinyfusion.settings.check import check
from tinyfusion.settings.schema import COMMANDS
from tinyfusion.tracking import is_first_rank
from tinyfusion.training.module import TrainingDivergedError
from tinyfusion.version import __version__

log = logging.getLogger(__name__)

CONFIG_FILE, COMMAND_FILE = "config.yaml", "command.txt"
LOG_FILE, FINISHED_FILE = "run.log", "finished.json"
SWEEP_FILE = "multirun.yaml"
"""What Hydra writes into the folder of a sweep."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.\w+")
"""Names that `files.write_atomic` uses before it renames."""


@dataclass
class Session:
    """What the jobs that one command line starts in this process share.

    Attributes:
        argv: the process's real arguments; Hydra is shown others.
        resuming: whether folders that already hold a run are gone on with.
        failures: messages of the jobs that failed, with their exit status.
        done: number of jobs that did not.
        sweep: folder of the sweep, if it is one.
    """

    argv: list[str]
    resuming: bool = False
    failures: list[tuple[str, int]] = field(default_factory=list)
    done: int = 0
    sweep: Path | None = None

    @contextmanager
    def reporting(self, where: str = "") -> Iterator[None]:
        """Run one job: what the user can mend is one line on stderr and does not end the others.

        Args:
            where: name of the job, if there are several.
        """
        try:
            yield
        except (InputError, TrainingDivergedError) as error:
            status = 2 if isinstance(error, InputError) else 1
            self.failures.append((str(error), status))
            name = f"{where}: " if where else ""
            print(f"tinyfusion: error: {name}{' '.join(str(error).split())}", file=sys.stderr)
        else:
            self.done += 1

    def close(self) -> int:
        """Summarise a sweep with failures on stderr and return the exit status."""
        if not self.failures:
            return 0
        if self.sweep is not None and _entries(self.sweep) == {SWEEP_FILE}:
            (self.sweep / SWEEP_FILE).unlink()
            _discard(self.sweep)
        total = len(self.failures) + self.done
        if total > 1:
            print(f"tinyfusion: {len(self.failures)} of {total} runs failed", file=sys.stderr)
        return max(status for _, status in self.failures)


session: Session | None = None
"""Set by the command line; ``None`` in processes that a parallel launcher started."""


def attempt(cfg: DictConfig) -> None:
    """Run a composed configuration; a failure is reported and does not end a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if session is None:
        start(cfg)
        return
    # Lightning starts further ranks by running the process's own command line again.
    sys.argv = session.argv
    hydra = HydraConfig.get()
    where = ""
    if hydra.mode == RunMode.MULTIRUN:
        session.sweep = Path(hydra.sweep.dir)
        where = Path(hydra.runtime.output_dir).name
    with session.reporting(where):
        start(cfg, session.resuming)


def start(cfg: DictConfig, resuming: bool = False) -> None:
    """Run a freshly composed configuration in the folder that Hydra made for it.

    Args:
        cfg: composed configuration.
        resuming: go on with the run that the folder holds, if it holds one.

    Raises:
        InputError: a wrong key or value, several devices inside a sweep, or a folder that
            already holds a run.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    if resuming and (folder / CONFIG_FILE).is_file():
        _resume_run(str(cfg.command), folder)
        return
    if not is_first_rank():
        # A further rank of a run whose first rank has checked everything and owns the folder.
        _run(check(cfg, hydra.overrides.task), folder)
        return
    try:
        cfg = check(cfg, hydra.overrides.task)
        if hydra.mode == RunMode.MULTIRUN and (cfg.trainer.get("devices") or 1) != 1:
            raise InputError(
                f"trainer.devices={cfg.trainer.devices} in a sweep: Lightning starts further "
                "ranks by running the same command line again, so each would run the whole sweep "
                "in a second folder; use one device per run, or start the runs one by one"
            )
        _claim(folder)
    except InputError:
        _discard(folder)
        raise
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(cfg))
    words = ["tinyfusion", cfg.command, *hydra.overrides.task]
    write_text(folder / COMMAND_FILE, shlex.join(words) + "\n")
    with _locked(folder):
        try:
            _run(cfg, folder)
        except InputError:
            if _entries(folder) <= {CONFIG_FILE, COMMAND_FILE, LOG_FILE}:
                # Refused before any work: leave no folder that looks like a run.
                _close_log()
                for name in (CONFIG_FILE, COMMAND_FILE, LOG_FILE):
                    (folder / name).unlink(missing_ok=True)
                _discard(folder)
            raise


def sweep_overrides(command: str, folder: Path) -> list[str] | None:
    """Arguments that run a sweep again in its folder; ``None`` if it is the folder of no sweep.

    Raises:
        InputError: the sweep is one of another command, or its file can't be read.
    """
    file = folder / SWEEP_FILE
    if not file.is_file():
        return None
    try:
        hydra = OmegaConf.load(file).hydra
        found = hydra.job.config_name
        own = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
        settings = [
            text
            for text in hydra.overrides.hydra
            if not text.startswith(("hydra.sweep.dir=", "hydra.mode="))
        ]
        task = list(hydra.overrides.task)
    except Exception as error:
        raise InputError(f"resume={folder}: {SWEEP_FILE} can't be read: {error}") from None
    if found != command:
        raise InputError(_other_command(folder, found))
    flags = [word for path in own for word in ("--config-dir", path)]
    return ["-m", *flags, *task, *settings, f"hydra.sweep.dir='{folder.absolute()}'"]


def resume_folder(command: str, folder: Path) -> int:
    """Go on with an interrupted run, or with every run in the folder.

    Returns:
        Exit status; what failed has been reported, and the other runs were gone on with.

    Raises:
        InputError: no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise InputError(f"resume={folder}: there is no such folder")
    runs = [folder] if (folder / CONFIG_FILE).is_file() else []
    runs = runs or sorted(file.parent for file in folder.glob(f"*/{CONFIG_FILE}"))
    if not runs:
        raise InputError(f"resume={folder}: no {CONFIG_FILE} in it or in its subfolders")
    several = Session(sys.argv, resuming=True)
    for run in runs:
        with several.reporting(run.name if len(runs) > 1 else ""):
            _resume_run(command, run)
    return several.close()


def _resume_run(command: str, folder: Path) -> None:
    """Go on with one interrupted run.

    Raises:
        InputError: no configuration of a run, a run of another command, or one that another
            process is working on.
    """
    try:
        cfg = OmegaConf.load(folder / CONFIG_FILE)
    except Exception as error:
        raise InputError(f"resume={folder}: {CONFIG_FILE} can't be read: {error}") from None
    if not isinstance(cfg, DictConfig) or cfg.get("command") not in COMMANDS:
        raise InputError(f"resume={folder}: {CONFIG_FILE} is not the configuration of a run")
    if cfg.command != command:
        raise InputError(_other_command(folder, cfg.command))
    if not is_first_rank():
        # The first rank, which started this process, holds the folder.
        _run(check(cfg), folder)
        return
    if (folder / FINISHED_FILE).is_file():
        print(f"{command}: {folder} is finished; nothing to do")
        return
    with _locked(folder):
        for torn in folder.rglob(".*"):
            if torn.is_file() and _TEMPORARY.fullmatch(torn.name):
                torn.unlink()
        _run(check(cfg), folder)


def _other_command(folder: Path, command: str) -> str:
    return (
        f"resume={folder} is a run of 'tinyfusion {command}'; "
        f"write 'tinyfusion {command} resume={folder}'"
    )


def _run(cfg: DictConfig, folder: Path) -> None:
    _log_to(folder)
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
    finally:
        _close_log()


def _claim(folder: Path) -> None:
    """Take an empty folder for a run: whoever creates the configuration file owns it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(folder / CONFIG_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise InputError(
            f"{folder} already holds a run; go on with it by resume={folder}, or choose another "
            "folder (hydra.run.dir=...)"
        ) from None


def _discard(folder: Path) -> None:
    """Remove the folders that Hydra made for a job that was refused, as far as they are empty."""
    for empty in (folder, *folder.parents[:2]):
        if not empty.is_dir() or _entries(empty) or empty == Path.cwd():
            return
        empty.rmdir()


def _entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock ends with the process, however it ends.

    Raises:
        InputError: another process holds it.
    """
    with open(folder / CONFIG_FILE) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is working in {folder}; wait for it") from None
        yield


def _log_to(folder: Path) -> None:
    """Messages of this package on the console and in ``run.log``; of further ranks none."""
    logger = logging.getLogger("tinyfusion")
    logger.setLevel(logging.INFO if is_first_rank() else logging.CRITICAL)
    logger.propagate = False
    _close_log()
    if not is_first_rank():
        return
    console = _Console()
    console.setFormatter(logging.Formatter("%(message)s"))
    file = logging.FileHandler(folder / LOG_FILE)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in (console, file):
        logger.addHandler(handler)


class _Console(logging.StreamHandler):
    """Writes to what ``sys.stdout`` is at the moment: progress bars put something else there."""

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


def _close_log() -> None:
    logger = logging.getLogger("tinyfusion")
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
