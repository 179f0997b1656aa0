"""From what a user typed to a path: local path, packaged model or hub id, in this order."""

from __future__ import annotations

import re
from pathlib import Path

import tinyfusion.assets
from tinyfusion.errors import InputError

PACKAGED = {"digits": "digits_teacher"}
"""Models that ship inside the package: name and folder under ``tinyfusion/assets``."""

ASSETS = Path(tinyfusion.assets.__file__).parent

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHT_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".json"}


def resolve(path_or_name: Path | str) -> Path:
    """Find the file or folder that a checkpoint argument means.

    Args:
        path_or_name: an existing path, else the name of a packaged model (``digits``), else a
            hub id ``owner/name``, whose JSON and safetensors files are downloaded.

    Returns:
        A path that exists.

    Raises:
        InputError: nothing of that name can be found; the message lists what is valid.
    """
    path = Path(path_or_name).expanduser()
    name = str(path_or_name)
    if name and path.exists():  # to pathlib, the empty string is the working folder
        return path
    packaged = ASSETS / PACKAGED[name] if name in PACKAGED else None
    if packaged is not None and packaged.is_dir():
        return packaged
    if isinstance(path_or_name, str) and _is_hub_id(name):
        return _download(name)
    raise InputError(
        f"checkpoint {name!r} does not exist; valid: a file or folder, a packaged model "
        f"({', '.join(PACKAGED)}), or a hub id of the form owner/name"
    )


def _is_hub_id(name: str) -> bool:
    # "outputs/recovered" has the form of a hub id too: with a local folder of the first name,
    # or the suffix of a weight file, a mistyped path is more likely than a hub id.
    if not _HUB_ID.fullmatch(name) or Path(name).suffix in _WEIGHT_SUFFIXES:
        return False
    return not Path(name).parent.is_dir()


def _download(repo_id: str) -> Path:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, allow_patterns=["*.json", "*.safetensors"]
        )
    # The hub client passes on errors of its HTTP library, which differs between its versions.
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(
            f"checkpoint {repo_id!r} is no local path and could not be fetched from the hub: "
            f"{reason}"
        ) from None
    return Path(folder)
