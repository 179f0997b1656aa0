"""A run's folder: whose it is, what lies in it, and leaving none that looks like a run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tinyfusion.errors import InputError
from tinyfusion.text import shell_word

CONFIG_FILE, COMMAND_FILE = "config.yaml", "command.txt"
LOG_FILE, FINISHED_FILE = "run.log", "finished.json"


def claim(folder: Path) -> None:
    """Take an empty folder for a run: whoever creates the configuration file owns it.

    Raises:
        InputError: it holds a run already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(folder / CONFIG_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise InputError(
            f"{folder} already holds a run; resume it by {shell_word('resume', folder)}, or choose "
            "another folder (hydra.run.dir=...)"
        ) from None


def unclaim(folder: Path, existing: Path | None = None) -> None:
    """Give up a folder whose run was refused before any work; else leave it as it is.

    Args:
        folder: the run's folder.
        existing: see `discard`.
    """
    if entries(folder) <= {CONFIG_FILE, COMMAND_FILE, LOG_FILE}:
        for name in (CONFIG_FILE, COMMAND_FILE, LOG_FILE):
            (folder / name).unlink(missing_ok=True)
        discard(folder, existing)


def discard(folder: Path, existing: Path | None = None) -> None:
    """Remove the empty folders that were made for a run that was refused, and none besides.

    Args:
        folder: the run's folder.
        existing: the deepest folder on its path that existed before (see `existing_part`); it and
            all above it stay. ``None``: only ``folder`` itself was made for the run.
    """
    folder = folder.absolute()
    for empty in (folder, *folder.parents) if existing is not None else (folder,):
        if empty == existing or not empty.is_dir() or entries(empty):
            return
        empty.rmdir()


def existing_part(folder: Path) -> Path:
    """The deepest folder on a path that exists already, the folder itself included."""
    folder = folder.absolute()
    return next(part for part in (folder, *folder.parents) if part.is_dir())


def entries(folder: Path) -> set[str]:
    """Names of what lies in a folder; nothing if there is none."""
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


@contextmanager
def locked(folder: Path) -> Iterator[TextIO]:
    """Hold the folder; the lock ends with the last process that has the file open.

    Yields:
        The open file that carries the lock.

    Raises:
        InputError: another process holds it.
    """
    with open(folder / CONFIG_FILE) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is working in {folder}; wait for it") from None
        yield handle
