"""Where an export may be written."""

from __future__ import annotations

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
        InputError: ``target`` exists and may not be replaced, is a folder or file that holds no
            model, or has a suffix that does not fit the layout.
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
