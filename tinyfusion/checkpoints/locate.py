"""From what a user typed to a path: local path, packaged model or hub id, in this order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import tinyfusion.assets
from tinyfusion.checkpoints.layout import (
    DIFFUSERS_STEM,
    PIPELINE_FILE,
    TRANSFORMER_FOLDER,
    WEIGHT_SUFFIXES,
)
from tinyfusion.errors import InputError, first_line

PACKAGED = {name: f"{name}_teacher" for name in ("digits", "sit_digits", "mar_digits")}
"""Models that ship inside the package: name and folder under ``tinyfusion/assets``."""

ASSETS = Path(tinyfusion.assets.__file__).parent

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SUFFIXES = WEIGHT_SUFFIXES | {".json"}


def resolve(path_or_name: Path | str) -> Path:
    """Find the file or folder that a checkpoint argument means.

    Args:
        path_or_name: an existing path, else the name of a packaged model (a key of `PACKAGED`),
            else a hub id ``owner/name``, of which the files that make the model are downloaded.

    Returns:
        A path that exists.

    Raises:
        InputError: nothing of that name can be found, and the message lists what is valid; or a
            packaged model is missing from this installation.
    """
    path = Path(path_or_name).expanduser()
    name = str(path_or_name)
    if name and path.exists():  # to pathlib, the empty string is the working folder
        return path
    if name in PACKAGED:
        packaged = ASSETS / PACKAGED[name]
        if not packaged.is_dir():
            raise InputError(
                f"checkpoint {name!r} is a packaged model, but {packaged} is not there: install "
                "tinyfusion anew, or give the path of another checkpoint"
            )
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
    if not _HUB_ID.fullmatch(name) or Path(name).suffix in _SUFFIXES:
        return False
    return not Path(name).parent.is_dir()


def _download(repo_id: str) -> Path:
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().model_info(repo_id, timeout=30)
    # The hub client passes on errors of its HTTP library, which differs between its versions.
    except Exception as error:
        try:  # what was fetched earlier is there without a network
            return Path(huggingface_hub.snapshot_download(repo_id, local_files_only=True))
        except Exception:
            raise InputError(
                f"checkpoint {repo_id!r} is no local path and could not be fetched from the hub: "
                f"{first_line(error)}"
            ) from None
    wanted = _wanted([file.rfilename for file in found.siblings or ()], repo_id)
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=wanted))
    except Exception as error:
        raise InputError(
            f"checkpoint {repo_id!r} could not be fetched from the hub: {first_line(error)}"
        ) from None


def _wanted(names: Sequence[str], repo_id: str) -> list[str]:
    """The files of a repository that make the model: of a pipeline its denoiser alone.

    Raises:
        InputError: the repository holds no weights.
    """
    folder = f"{TRANSFORMER_FOLDER}/" if PIPELINE_FILE in names else ""
    inside = [name for name in names if name.rpartition("/")[0] == folder.rstrip("/")]
    weights = [name for name in inside if name.endswith(".safetensors")]
    # Of the same weights in several types, those that loading takes.
    variant = re.compile(rf"{DIFFUSERS_STEM}\.\w+(-\d+-of-\d+)?\.safetensors")
    plain = [name for name in weights if not variant.fullmatch(name.rpartition("/")[2])]
    weights = plain or weights or [name for name in inside if name.endswith(".bin")]
    if not weights:
        raise InputError(
            f"hub repository {repo_id!r} holds no weights in a supported layout; valid: a model "
            "folder of tinyfusion, or a diffusers model or pipeline"
        )
    records = [name for name in names if name.endswith(".json") and "/" not in name]
    records += [name for name in inside if name.endswith(".json")]
    return sorted({*records, *weights})
