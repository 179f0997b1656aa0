"""Reading a model folder of ours: weights, and ``config.json`` with their hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyfusion.checkpoints.checkpoint import Checkpoint, border_indices, kept_indices
from tinyfusion.checkpoints.layout import FORMAT, FORMAT_VERSION
from tinyfusion.checkpoints.tensors import cleaned, dtypes_of, read_safetensors
from tinyfusion.errors import InputError
from tinyfusion.files import sha256_of


def is_ours(config: Any) -> bool:
    """Whether the content of a ``config.json`` says that it is a model folder's."""
    return isinstance(config, dict) and config.get("format") == FORMAT


def weights_of(config: dict[str, Any], config_path: Path) -> dict[str, str]:
    """The ``weights`` entry of a config, after the checks that reading it depends on.

    Raises:
        InputError: an unknown ``format_version``, or an entry without file name and hash.
    """
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{config_path}: format_version {version!r} can't be read by this version of "
            f"tinyfusion; valid: {FORMAT_VERSION}"
        )
    weights: Any = config.get("weights")
    is_complete = isinstance(weights, dict) and all(
        isinstance(weights.get(key), str) for key in ("file", "sha256")
    )
    if not is_complete or Path(weights["file"]).name != weights["file"]:
        raise InputError(
            f"{config_path}: key 'weights' must hold a file name and its sha256, got {weights!r}"
        )
    return weights


def read_own(config: dict[str, Any], config_path: Path) -> Checkpoint:
    """Read the model that a config describes.

    Args:
        config: content of ``config_path``, of which :func:`is_ours` holds.
        config_path: ``config.json`` of a model folder.

    Raises:
        InputError: the weights are missing, damaged or not those that the config was written
            for, or the config is incomplete.
    """
    weights = weights_of(config, config_path)
    path = config_path.with_name(weights["file"])
    if not path.is_file():
        raise InputError(f"{path}: does not exist, but {config_path} names it")
    digest, expected = sha256_of(path), weights["sha256"]
    if digest != expected:
        raise InputError(
            f"{path}: SHA-256 is {digest[:12]}..., but {config_path} records {expected[:12]}...: "
            "the file is incomplete or was changed"
        )
    for key, kind in {"backbone": str, "arguments": dict}.items():
        if not isinstance(config.get(key), kind) or config[key] == "":
            raise InputError(f"{config_path}: key {key!r} is missing or wrong: {config.get(key)!r}")
    arguments = config["arguments"]
    depth = config.get("depth", arguments.get("depth"))
    raw = read_safetensors(path)
    version = config.get("tinyfusion_version")
    return Checkpoint(
        state=cleaned(path, raw),
        path=path,
        sha256=digest,
        backbone=config["backbone"],
        arguments=arguments,
        depth=depth,
        kept_from=kept_indices(config.get("kept_from"), depth, config_path),
        source_borders=border_indices(config.get("source_borders"), config_path),
        provenance=config.get("provenance") or {},
        layout=f"model folder of tinyfusion {version}" if version else "model folder of tinyfusion",
        files=(path,),
        dtypes=dtypes_of(raw),
    )
