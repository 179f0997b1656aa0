"""Where an export may be written, and folders that are either whole or absent."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from tinyfusion.checkpoints.layout import CONFIG_FILE, PIPELINE_FILE
from tinyfusion.errors import InputError

PUBLIC_SUFFIXES = (".pt", ".pth", ".safetensors")
"""Of a weights file in the public layout."""


def check_target(target: Path, layout: str, overwrite: bool) -> None:
    """Refuse a place that an export can't or must not be written to.

    Args:
        target: file for ``"public"``, else folder.
        layout: ``"ours"``, ``"public"`` or ``"diffusers"``.
        overwrite: whether a model there may be replaced.

    Raises:
        InputError: it exists and may not be replaced, holds something else, or is no name for
            what is to be written.
    """
    is_file_name = target.suffix in (*PUBLIC_SUFFIXES, ".bin", ".ckpt")
    if layout == "public" and target.suffix not in PUBLIC_SUFFIXES:
        raise InputError(
            f"{target}: the public layout is one weights file; valid suffixes: "
            f"{', '.join(PUBLIC_SUFFIXES)}"
        )
    if layout != "public" and is_file_name:
        raise InputError(
            f"{target}: the layout {layout!r} is a folder, but this is the name of a weights file"
        )
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"{target} exists; give another name, or --overwrite to replace it")
    if layout == "public":
        if not target.is_file():
            raise InputError(f"{target}: is a folder and is not replaced by a weights file")
    elif not target.is_dir():
        raise InputError(f"{target}: is a file and is not replaced by a folder")
    elif any(target.iterdir()) and not any(
        (target / name).is_file() for name in (CONFIG_FILE, PIPELINE_FILE)
    ):
        raise InputError(f"{target}: holds no model, so --overwrite does not replace it")


def write_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Let ``fill`` fill a temporary folder beside ``folder``, then rename it to ``folder``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    temporary = folder.with_name(f".{folder.name}.{mark}")
    former = folder.with_name(f".{folder.name}.{mark}.former")
    try:
        temporary.mkdir()
        fill(temporary)
        # Some writers make files that nobody else may read: take the mode that the umask gives.
        mode = temporary.stat().st_mode & 0o666
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(mode)
        if folder.exists():
            os.replace(folder, former)
        os.replace(temporary, folder)
    except BaseException:
        if former.exists() and not folder.exists():
            os.replace(former, folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)
    return folder
