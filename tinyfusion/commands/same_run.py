"""Whether a folder holds a run of this very configuration, which the same command resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinyfusion.errors import InputError, one_line
from tinyfusion.runtime.folder import CONFIG_FILE, stored
from tinyfusion.text import shell_word


def refuse_another(folder: Path, config: str) -> bool:
    """Whether a folder holds a run of this very configuration.

    Raises:
        InputError: it holds one of another configuration, or one that can't be read.
    """
    found = stored(folder)
    if not found:
        return False
    try:
        there, here = (OmegaConf.to_container(OmegaConf.create(text)) for text in (found, config))
    except Exception as error:
        raise InputError(f"{folder / CONFIG_FILE} can't be read: {one_line(error)}") from None
    differing = list(_differences(there, here))
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise InputError(
            f"{folder} already holds a run of another configuration: {differing[0]}{more}; resume "
            f"it by {shell_word('resume', folder)}, or choose another folder (hydra.run.dir=...)"
        )
    return True


def _differences(there: Any, here: Any, key: str = "") -> Iterator[str]:
    """Where two configurations differ, each as ``key=1 there, 2 here``."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*there, *(name for name in here if name not in there)]:
            path = f"{key}.{name}" if key else str(name)
            yield from _differences(there.get(name), here.get(name), path)
    # Texts, as nan is not equal to itself.
    elif repr(there) != repr(here):
        yield f"{key}={there} there, {here} here"
