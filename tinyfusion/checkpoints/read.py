"""Reading weight files of every supported layout without executing anything in them."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tinyfusion.checkpoints.layout import CONFIG_FILE, FORMAT, FORMAT_VERSION, WEIGHTS_FILE
from tinyfusion.checkpoints.locate import resolve
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, sha256_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file or folder holds.

    Attributes:
        state: weights by public name, in the file's types, all finite. They may be mapped from
            the file: copy before changing them.
        path: the file that holds the weights.
        sha256: hex digest of that file.
        backbone: family (``"dit"``), or ``None`` if the file does not say.
        arguments: constructor arguments, or ``None`` if the file does not say.
        kept_from: for each block its index in the model this one was pruned from, or ``None``.
        provenance: how the model came about, as recorded.
    """

    state: dict[str, Tensor]
    path: Path
    sha256: str
    backbone: str | None = None
    arguments: dict[str, Any] | None = None
    kept_from: tuple[int, ...] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint.

    Supported: a folder written by :func:`~tinyfusion.checkpoints.save_model`; a ``.safetensors``
    file, with the ``config.json`` beside it if that names the file; a PyTorch file with a bare
    state dict or with a training checkpoint (``ema`` is preferred to ``model``). Prefixes that
    ``DistributedDataParallel`` and ``torch.compile`` put before names are removed.

    Args:
        path: anything that :func:`~tinyfusion.checkpoints.resolve` understands.

    Returns:
        The checkpoint.

    Raises:
        InputError: the file is missing, damaged, changed since its config was written, of an
            unknown layout, holds anything but tensors, or holds values that are not finite.
    """
    path = resolve(path)
    if path.is_dir():
        return _read_folder(path)
    config_path = path.with_name(CONFIG_FILE)
    if path.suffix == ".safetensors":
        if config_path.is_file():
            config = read_json(config_path, "config")
            if _is_ours(config) and _weights_of(config, config_path)["file"] == path.name:
                return _read_configured(path, config, config_path)
        state = _read_safetensors(path)
    else:
        state = _pick_state(path, _read_torch(path))
    return Checkpoint(_cleaned(path, state), path, sha256_of(path))


def _read_folder(folder: Path) -> Checkpoint:
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        found = sorted(entry.name for entry in folder.iterdir())
        raise InputError(
            f"{folder}: not a model folder, it holds "
            f"{', '.join(found[:5]) + (', ...' if len(found) > 5 else '') if found else 'nothing'}"
            f"; valid: {CONFIG_FILE} and {WEIGHTS_FILE}, or give the path of a weight file"
        )
    config = read_json(config_path, "config")
    if not _is_ours(config):
        raise InputError(
            f'{config_path}: not the config of a model folder, which says "format": "{FORMAT}"'
        )
    path = folder / _weights_of(config, config_path)["file"]
    if not path.is_file():
        raise InputError(f"{path}: does not exist, but {config_path} names it")
    return _read_configured(path, config, config_path)


def _read_configured(path: Path, config: dict[str, Any], config_path: Path) -> Checkpoint:
    digest, expected = sha256_of(path), _weights_of(config, config_path)["sha256"]
    if digest != expected:
        raise InputError(
            f"{path}: SHA-256 is {digest[:12]}..., but {config_path} records {expected[:12]}...: "
            "the file is incomplete or was changed"
        )
    for key, kind in {"backbone": str, "arguments": dict}.items():
        if not isinstance(config.get(key), kind):
            raise InputError(f"{config_path}: key {key!r} is missing or wrong: {config.get(key)!r}")
    return Checkpoint(
        state=_cleaned(path, _read_safetensors(path)),
        path=path,
        sha256=digest,
        backbone=config["backbone"],
        arguments=config["arguments"],
        kept_from=_kept_from(config, config_path),
        provenance=config.get("provenance") or {},
    )


def _is_ours(config: Any) -> bool:
    return isinstance(config, dict) and config.get("format") == FORMAT


def _weights_of(config: dict[str, Any], config_path: Path) -> dict[str, str]:
    """The ``weights`` entry of a config, after the checks that reading it depends on."""
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{config_path}: format_version {version!r} can't be read by this version of "
            f"tinyfusion; valid: {FORMAT_VERSION}"
        )
    weights = config.get("weights")
    is_whole = isinstance(weights, dict) and all(
        isinstance(weights.get(key), str) for key in ("file", "sha256")
    )
    if not is_whole or Path(weights["file"]).name != weights["file"]:
        raise InputError(
            f"{config_path}: key 'weights' must hold a file name and its sha256, got {weights!r}"
        )
    return weights


def _kept_from(config: dict[str, Any], config_path: Path) -> tuple[int, ...] | None:
    kept = config.get("kept_from")
    if kept is None:
        return None
    if (
        not isinstance(kept, list)
        or not all(type(index) is int and index >= 0 for index in kept)
        or kept != sorted(set(kept))
        or len(kept) != config["arguments"].get("depth", len(kept))
    ):
        raise InputError(
            f"{config_path}: kept_from must list one increasing index per block, got {kept!r}"
        )
    return tuple(kept)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file, perhaps truncated ({_first_line(error)})"
        ) from None


def _read_torch(path: Path) -> Any:
    # Mapping reads only the tensors that are used: a training checkpoint holds four copies.
    can_map = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on pickle versions; errors say enough
            return torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)
    except MemoryError:
        raise
    # A damaged pickle can fail in any way: unknown opcodes, bad indices, broken text.
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise InputError(
                f"{path}: refused, because the file asks to run {found[1]}; valid: a file that "
                "holds only tensors, numbers, text and an argparse.Namespace"
            ) from None
        # torch's own text on pickles advises to load them without protection: not repeated.
        reason = _first_line(error)
        if isinstance(error, pickle.UnpicklingError):
            reason = "its pickle is damaged or asks for more than plain tensors"
        raise InputError(
            f"{path}: not a readable PyTorch file, perhaps truncated ({reason})"
        ) from None


def _pick_state(path: Path, content: Any) -> dict[str, Any]:
    """The weights of a PyTorch file."""
    if isinstance(content, Mapping):
        for key in ("ema", "model"):
            if _is_state(content.get(key)):
                logger.info("%s: training checkpoint, weights under %r", path, key)
                return dict(content[key])
        if _is_state(content):
            return dict(content)
    found = list(content)[:5] if isinstance(content, Mapping) else type(content).__name__
    raise InputError(
        f"{path}: holds neither a state dict nor a training checkpoint with 'ema' or 'model', "
        f"found {found}"
    )


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _cleaned(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Public names without wrapper prefixes; refuses values that no model can hold."""
    cleaned: dict[str, Tensor] = {}
    for name, tensor in state.items():
        public = name.replace("_orig_mod.", "")
        while public.startswith("module."):
            public = public.removeprefix("module.")
        if public in cleaned:
            raise InputError(f"{path}: holds tensor {public!r} twice, the second as {name!r}")
        if not tensor.is_floating_point():
            raise InputError(f"{path}: tensor {name!r} is {tensor.dtype}; valid: floating types")
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise InputError(
                f"{path}: tensor {name!r} holds {bad} values that are not finite (NaN or infinity)"
            )
        cleaned[public] = tensor.detach()
    return cleaned


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
