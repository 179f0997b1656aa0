"""Files and folders that are either whole or absent, and hashes of files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyfusion.errors import InputError


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
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        # Some writers make files that nobody else may read: take the mode that the umask gives.
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def replace_folder(new: Path, folder: Path) -> Path:
    """Rename a finished folder to the place of another one, which is removed.

    Killed at any moment it leaves one of the two; `restore_folder` puts it back in place.

    Args:
        new: the finished folder, beside ``folder``.
        folder: where it goes; need not be there.

    Returns:
        ``folder``.
    """
    restore_folder(folder)
    if folder.is_dir():
        folder.rename(_replaced(folder))
    new.rename(folder)
    shutil.rmtree(_replaced(folder), ignore_errors=True)
    return folder


def restore_folder(folder: Path) -> None:
    """Put a folder back whose replacement was interrupted; otherwise leave all as it is."""
    old = _replaced(folder)
    if folder.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    elif old.is_dir():
        old.rename(folder)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


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
        raise InputError(f"{what} file {str(path)!r} does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{what} file {str(path)!r} is not valid JSON: {error}") from None


def sha256_of(path: Path | str) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
