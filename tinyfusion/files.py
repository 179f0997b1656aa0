"""Files and folders that are either complete or absent, and hashes of files.

What is being written has a temporary name beside its final one: ``.NAME.1a2b3c4d.SUFFIX``. A folder
that is being replaced is called ``.NAME.former`` for the moment between two renames.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from tinyfusion.errors import InputError, refused_by_system, system_error
from tinyfusion.notices import notice


def write_atomic(path: Path | str, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    Args:
        path: final place; its folder is made if need be.
        write: called with the temporary path, which has the suffix of ``path`` and may already
            exist as an empty file.

    Returns:
        ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        # Some writers make files that nobody else may read: take the mode that the umask gives.
        temporary.touch()
        mode = temporary.stat().st_mode
        with _naming(path, temporary):
            write(temporary)
            temporary.chmod(mode)
            publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def _naming(path: Path, written: Path) -> Iterator[None]:
    """Raise what the disk refuses as an ``OSError`` that names the final place.

    Libraries raise what they like when a disk is full, some of them without saying that it is.

    Args:
        path: the final place.
        written: a file beside it that can be made longer to see whether anything more fits.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        number = _refusal(error) or _no_room(written)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _refusal(error: Exception) -> int | None:
    """Number of the system's error that an exception is or tells of."""
    refused = system_error(error)
    told = _TOLD_BY_RUST.search(str(error))
    return refused.errno if refused is not None else int(told[1]) if told else None


_TOLD_BY_RUST = re.compile(r"\(os error (\d+)\)")
_PROBE = 2**20
"""Bytes that are written to find out whether more fit: some may be left of a full disk."""


def _no_room(file: Path) -> int | None:
    """Number of the system's error when a file is made longer; ``None`` if that works."""
    try:
        with open(file, "ab", buffering=0) as handle:
            handle.write(bytes(_PROBE))
            os.fsync(handle.fileno())
    except OSError as error:
        return error.errno
    return None


def publish(temporary: Path, path: Path) -> None:
    """Give a complete file its final name, once its content is on the disk.

    Args:
        temporary: the file, in the same folder as ``path``.
        path: its final place; a file there is replaced.
    """
    _sync(temporary)
    os.replace(temporary, path)


@contextmanager
def dispensable() -> Iterator[None]:
    """Write what can be computed again: that it can't be kept is noted and ends nothing."""
    try:
        yield
    except OSError as error:
        notice(f"not kept for further runs: {refused_by_system(error)}")


def write_folder_atomic(folder: Path | str, fill: Callable[[Path], object]) -> Path:
    """Let ``fill`` fill a temporary folder beside ``folder``, then rename it to ``folder``.

    A folder that is there is replaced in one piece. A process that is killed leaves the old or the
    new one: between the two renames the old one is called ``.NAME.former``, and
    :func:`restore_folder` gives it its name back.

    Args:
        folder: final place; the folder around it is made if need be.
        fill: called with the temporary folder, which is empty.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    restore_folder(folder)
    temporary, former = _temporary(folder), _former(folder)
    try:
        temporary.mkdir()
        with _naming(folder, temporary / ".room"):
            fill(temporary)
        (temporary / ".room").unlink(missing_ok=True)
        # As for single files.
        mode = temporary.stat().st_mode & 0o666
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(mode)
                _sync(file)
        if folder.exists():
            os.replace(folder, former)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        restore_folder(folder)
    return folder


def restore_folder(folder: Path | str) -> None:
    """Undo the first half, or finish the second, of a replacement that was interrupted.

    Args:
        folder: final place of what :func:`write_folder_atomic` wrote. Nobody may be writing it.
    """
    folder = Path(folder)
    former = _former(folder)
    if not former.is_dir():
        return
    if folder.exists():
        shutil.rmtree(former)
    else:
        os.replace(former, folder)


def try_lock(handle: TextIO, how: int = fcntl.LOCK_EX) -> bool:
    """Whether an open file could be locked at once; the lock ends when it is closed.

    Args:
        handle: the file.
        how: ``fcntl.LOCK_EX``, for this process alone, or ``fcntl.LOCK_SH``.

    Returns:
        ``True`` also on network file systems that have no locks.
    """
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True


def target_of(name: str) -> str | None:
    """The final name of what has a temporary one, such as ``a.npy`` of ``.a.1a2b3c4d.npy``.

    Args:
        name: name of a file or folder.

    Returns:
        ``None`` for any other name.
    """
    match = _TEMPORARY.fullmatch(name)
    return match and match["stem"] + match["suffix"]


def clear_torn(root: Path) -> None:
    """Remove what killed processes left half written, and restore the folders they were replacing.

    Args:
        root: folder that is searched to any depth. Nobody may be writing in it.
    """
    for path in sorted(root.rglob(".*")):
        former = _FORMER.fullmatch(path.name)
        if former and path.is_dir():
            restore_folder(path.with_name(former[1]))
        elif target_of(path.name) and path.is_file():
            path.unlink()
        elif target_of(path.name) and path.is_dir():
            shutil.rmtree(path)


_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{8}(?P<suffix>(\.\w+)?)")
_FORMER = re.compile(r"\.(.+)\.former")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")


def _former(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")


def _sync(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Write bytes atomically."""
    return write_atomic(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path | str, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path | str, value: Any) -> Path:
    """Write ``value`` as indented JSON atomically."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=True) + "\n")


def read_json(path: Path | str, what: str) -> Any:
    """Read a JSON file that the user named.

    Args:
        path: the file.
        what: what the file should be, for the error message ("decision", "config").

    Raises:
        InputError: the file is missing or is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{what} file {str(path)!r} {fault}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{what} file {str(path)!r} is not valid JSON: {error}") from None


def sha256_of(path: Path | str) -> str:
    """Hex SHA-256 of a file's content, of which no more than a buffer is held."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


Stamp = tuple[str, int, int, int]
"""What tells a file from another version of it without reading it."""


def stamp_of(path: Path | str) -> Stamp:
    """Place, inode, size and time of change (ns) of a file.

    Raises:
        OSError: there is no such file.
    """
    found = os.stat(path)
    return str(Path(path).absolute()), found.st_ino, found.st_size, found.st_mtime_ns


def known_sha256(path: Path | str) -> str:
    """As :func:`sha256_of`, but a file that did not change is read once per process."""
    return _sha256_at(stamp_of(path))


@cache
def _sha256_at(stamp: Stamp) -> str:
    return sha256_of(stamp[0])
