"""Which keys hold paths, and the absolute path that a value means.

A path is resolved once, against the folder where the command was given; what is passed on to other
processes or recorded is absolute. Imports nothing outside the standard library.
"""

from __future__ import annotations

import os
from pathlib import Path

from tinyfusion.errors import InputError
from tinyfusion.settings.overview import choices

READ = (
    *("resume", "checkpoint", "decision", "images", "models"),
    *("teacher.path", "iterative.previous"),
    *("data.root", "autoencoder.path", "evaluation.reference", "evaluation.weights"),
    *("pruner.losses", "budget.table", "hydra.searchpath"),
)
"""Keys whose value may name a file or folder; what does not exist is a name or a hub id.

Those with a dot may stand inside others, as in ``callbacks.evaluate.evaluation.reference``.
"""

WRITTEN = (
    *("output_root", "store", "evaluation.features_folder"),
    *("hydra.run.dir", "hydra.sweep.dir"),
)
"""Keys whose value is a folder that need not exist yet."""

_NAMES = {"teacher.path": ("source",)}
"""Values that are no path, whatever lies in the working folder."""


def holds_path(key: str) -> bool:
    """Whether a key is one of `READ` or `WRITTEN`."""
    return _one_of(READ, key) or _one_of(WRITTEN, key)


def existing(key: str, text: str) -> str | None:
    """The absolute path of what a value names; ``None`` if it names nothing that exists.

    Under keys that are not known to hold paths, such as a user's own, the text has to look like
    one: with a separator, or with a file's ending. A plain word such as ``cpu`` stays, whatever
    lies in the working folder.

    Args:
        key: dotted key.
        text: its value.

    Raises:
        InputError: a path below the home folder of a user that there is not, or one that the
            configuration can't hold.
    """
    known = holds_path(key)
    if not text or not (known or "/" in text or Path(text).suffix):
        return None
    if text in _NAMES.get(key, ()) or (key == "models" and text in choices("backbone")):
        return None
    if os.path.exists(text):
        return _located(key, text)
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text and _one_of(READ, key):
        user = text.partition("/")[0]
        raise InputError(f"{key}={text}: there is no such file, and no home folder {user!r}")
    return _located(key, expanded) if os.path.exists(expanded) else None


def absolute(key: str, text: str) -> str | None:
    """As `existing`, and the absolute path of a folder that is to be made."""
    found = existing(key, text)
    if found is None and text and _one_of(WRITTEN, key):
        return _located(key, os.path.expanduser(text))
    return found


def _located(key: str, text: str) -> str:
    path = str(Path(text).absolute())
    if "${" in path:
        raise InputError(
            f"{key}={path}: '${{' begins a reference to another key, in the names of folders too; "
            "rename it, or give a link to it"
        )
    return path


def _one_of(keys: tuple[str, ...], key: str) -> bool:
    return any(key == known or ("." in known and key.endswith(f".{known}")) for known in keys)
