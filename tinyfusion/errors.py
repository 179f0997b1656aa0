"""Exceptions that the command line reports in one line; all others keep their traceback."""

from __future__ import annotations

import errno
import re


class InputError(ValueError):
    """Wrong input: the message names the key or file, the value found and what would be valid.

    The command line prints it as one line; every other exception keeps its traceback.
    """


class DiskError(RuntimeError):
    """A file or folder can't be written or read; what was finished before is kept."""


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient was not finite for ten steps in a row."""


class RanksFailedError(RuntimeError):
    """A rank failed without reporting why; its output may show more."""


REPORTED = (InputError, TrainingDivergedError, RanksFailedError, DiskError)
"""What the command line reports in one line."""


def first_line(error: BaseException) -> str:
    """An error's message, cut to its first sentence or line, for use inside another message."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.partition(". ")[0]


_KEY = re.compile(r"full_key: (?P<key>\S+)")
_NOISE = ("full_key:", "object_type=", "reference_type=", "Set the environment variable")


def full_key(error: BaseException | None) -> str:
    """The key that a message of OmegaConf is about; empty if it names none."""
    found = _KEY.search(str(error))
    return found["key"] if found else ""


def one_line(error: BaseException) -> str:
    """A library's message on one line, led by the key it is about."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    joined = "; ".join(line for line in lines if not line.startswith(_NOISE))
    key = full_key(error)
    if key not in joined:
        joined = f"{key}: {joined}"
    return joined or type(error).__name__


_ROOM = "make room"
_PLACE = "allow it or choose another place"
_FILE = "a file is in the way: remove it or choose another place"
_CURES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close some files",
    errno.EROFS: _PLACE,
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.EEXIST: _FILE,
    errno.ENOTDIR: _FILE,
    errno.EISDIR: "a folder is in the way: remove it or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle: choose another place",
    errno.EIO: "the disk fails: choose another one",
    errno.ESTALE: "the network file system has lost it: mount it anew",
}
"""What helps against errors of the system that are about files and places, not about this code."""


def system_error(error: BaseException | None) -> OSError | None:
    """The system's refusal behind an exception, if a file or place is what it is about."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _CURES:
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def refused_by_system(error: OSError, place: object = None) -> str:
    """What the system refused, where, and what helps, in one line.

    Args:
        error: the refusal.
        place: where it was, if the error itself does not say.
    """
    where = place if error.filename is None else error.filename
    cure = _CURES.get(error.errno or 0)
    return (
        ("" if where is None else f"{where}: ")
        + f"{error.strerror or error}"
        + (f"; {cure}" if cure else "")
    )
