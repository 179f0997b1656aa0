"""A run's folder: whose it is, what lies in it, and leaving none that looks like a run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tinyfusion.errors import InputError, refused_by_system
from tinyfusion.files import try_lock, write_text

CONFIG_FILE, COMMAND_FILE = "config.yaml", "command.txt"
LOG_FILE, FINISHED_FILE = "run.log", "finished.json"


class InUseError(InputError):
    """Another process is working in a run's folder."""


def stored(folder: Path) -> str:
    """The configuration of the run that a folder holds; empty if it holds none.

    A run that was killed before it had written one left nothing else either.

    Raises:
        InputError: it can't be read.
    """
    try:
        return (folder / CONFIG_FILE).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise InputError(f"the run's folder can't be read: {refused_by_system(error)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{folder / CONFIG_FILE} can't be read: {error}") from None


def claim(folder: Path, config: str, command: str) -> None:
    """Write what makes a folder that of a run: its configuration and its command line.

    Args:
        folder: the folder, which is held (see `locked`).
        config: the configuration.
        command: the command line.

    Raises:
        InputError: it can't be written; nothing is left.
    """
    try:
        # In place, as the lock is on the file; in one piece, so that a kill leaves all or nothing.
        content = config.encode()
        with open(folder / CONFIG_FILE, "wb", buffering=len(content) + 1) as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        write_text(folder / COMMAND_FILE, command + "\n")
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> InputError:
    refusal = refused_by_system(error, folder / CONFIG_FILE)
    return InputError(f"the run's folder can't be written: {refusal}")


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

    A folder that holds no run yet gets an empty configuration file, which carries the lock.

    Yields:
        The open file that carries the lock.

    Raises:
        InUseError: another process holds it.
        InputError: it can't be written.
    """
    file = folder / CONFIG_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(file, "a", encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from None
    with handle:
        busy = InUseError(f"another process is working in {folder}; wait for it")
        if not try_lock(handle):
            raise busy
        # Whoever held it may have given the folder up and removed the file meanwhile.
        if not file.is_file() or not os.path.samestat(os.fstat(handle.fileno()), file.stat()):
            raise busy
        yield handle


def in_use(folder: Path) -> bool:
    """Whether a process is working in a folder."""
    try:
        with open(folder / CONFIG_FILE, encoding="utf-8") as handle:
            return not try_lock(handle, fcntl.LOCK_SH)
    except OSError:
        return False
