"""Exceptions that the command line reports in one line; all others keep their traceback."""

from __future__ import annotations

import re


class InputError(ValueError):
    """Wrong input: the message names the key or file, the value found and what would be valid.

    The command line prints it as one line; every other exception keeps its traceback.
    """


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient was not finite for ten steps in a row."""


class RanksFailedError(RuntimeError):
    """A rank failed without reporting why; its output may show more."""


REPORTED = (InputError, TrainingDivergedError, RanksFailedError)
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
