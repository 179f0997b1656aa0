"""Reading a diffusers folder: a transformer that a backbone knows, or a pipeline around one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import FAMILIES
from tinyfusion.backbones.public_files import DiffusersFiles
from tinyfusion.checkpoints.checkpoint import Checkpoint
from tinyfusion.checkpoints.export_record import with_record
from tinyfusion.checkpoints.layout import (
    CONFIG_FILE,
    DIFFUSERS_STEM,
    EXPORT_FILE,
    PIPELINE_FILE,
    TRANSFORMER_FOLDER,
)
from tinyfusion.checkpoints.lazy_state import LazyState
from tinyfusion.checkpoints.tensors import (
    cleaned,
    digest_of,
    dtypes_of,
    is_safetensors,
    is_state,
    read_safetensors,
    read_torch,
)
from tinyfusion.errors import InputError
from tinyfusion.files import read_json

_FAMILIES = {family: kind.diffusers for family, kind in FAMILIES.items() if kind.diffusers}
_FAMILY_BY_CLASS = {name: word for word, files in _FAMILIES.items() for name in files.class_names}
_WRITTEN = " or ".join(files.class_names[0] for files in _FAMILIES.values())


def diffusers_files_of(net: Backbone) -> DiffusersFiles:
    """How diffusers stores a backbone.

    Raises:
        InputError: diffusers has no class that computes the same.
    """
    files = type(net).diffusers
    if files is None:
        raise InputError(
            f"a {type(net).__name__} can't be exported to diffusers, whose DiTPipeline computes "
            f"only {' or '.join(FAMILIES[word].__name__ for word in _FAMILIES)}; valid: --to ours "
            "or --to public"
        )
    return files


def is_diffusers(config: Any) -> bool:
    """Whether the content of a ``config.json`` is that of some diffusers model."""
    return isinstance(config, dict) and "_class_name" in config


def read_pipeline(folder: Path) -> Checkpoint:
    """Read the denoiser of a pipeline folder, which holds ``model_index.json``.

    Raises:
        InputError: a pipeline around another model, or see :func:`read_diffusers`.
    """
    index_path = folder / PIPELINE_FILE
    index = read_json(index_path, "pipeline index")
    entry = index.get(TRANSFORMER_FOLDER) if isinstance(index, dict) else None
    if not isinstance(entry, list) or entry[-1] not in _FAMILY_BY_CLASS:
        name = index.get("_class_name") if isinstance(index, dict) else None
        raise InputError(
            f"{index_path}: {name or 'no known pipeline'} with {TRANSFORMER_FOLDER!r}: {entry!r}; "
            f"valid: a pipeline whose transformer is a {_WRITTEN}"
        )
    config_path = folder / TRANSFORMER_FOLDER / CONFIG_FILE
    return read_diffusers(read_json(config_path, "config"), config_path)


def read_diffusers(
    config: Mapping[str, Any], config_path: Path, weights: Path | None = None
) -> Checkpoint:
    """Read the model that a diffusers config describes.

    Args:
        config: content of ``config_path``, of which :func:`is_diffusers` holds.
        config_path: ``config.json`` beside the weights.
        weights: the weights file to take; default: the one or the shards that diffusers takes.

    Raises:
        InputError: another kind of model, weights that are missing, damaged or don't fit the
            config, or a wrong record of an export.
    """
    name = config.get("_class_name")
    family = _FAMILY_BY_CLASS.get(str(name))
    if family is None:
        raise InputError(f"{config_path}: a {name} of diffusers; valid: {_WRITTEN}")
    folder = config_path.parent
    index_path = None if weights else _index_of(folder)
    if index_path is not None:
        placed = _placed(index_path)
        files = tuple(placed)
        raw = _read_shards(index_path, placed)
        layout = f"diffusers folder, sharded in {len(files)} file{'s' if len(files) > 1 else ''}"
    else:
        files = (weights or _only_file(folder),)
        raw, layout = _read_file(files[0]), "diffusers folder"
    path = files[0] if len(files) == 1 else folder
    state, arguments = _FAMILIES[family].read(cleaned(path, raw), config, str(path))
    checkpoint = Checkpoint(
        state=LazyState.of(state),
        path=path,
        sha256=digest_of(files),
        backbone=family,
        arguments=arguments,
        layout=layout,
        files=files,
        dtypes=dtypes_of(raw),
    )
    return with_record(checkpoint, folder / EXPORT_FILE)


def weight_files_of(folder: Path) -> tuple[Path, ...]:
    """The files that :func:`read_diffusers` reads, without reading them.

    Raises:
        InputError: the folder holds no weights, several variants of them, or an index of shards
            that does not fit its files.
    """
    index_path = _index_of(folder)
    return tuple(_placed(index_path)) if index_path is not None else (_only_file(folder),)


def _index_of(folder: Path) -> Path | None:
    """The list of shards, if there is one; diffusers prefers it to a single file too."""
    for suffix in ("safetensors", "bin"):
        index_path = folder / f"{DIFFUSERS_STEM}.{suffix}.index.json"
        if index_path.is_file():
            return index_path
        if (folder / f"{DIFFUSERS_STEM}.{suffix}").is_file():
            return None
    # Of a variant, such as diffusion_pytorch_model.safetensors.index.fp16.json.
    variants = list(folder.glob(f"{DIFFUSERS_STEM}.safetensors.index.*.json"))
    return variants[0] if len(variants) == 1 and not _variants(folder) else None


def _variants(folder: Path) -> list[Path]:
    """Single files such as diffusion_pytorch_model.fp16.safetensors."""
    files = folder.glob(f"{DIFFUSERS_STEM}.*.safetensors")
    return sorted(file for file in files if not re.search(r"-\d+-of-\d+$", file.stem))


def _only_file(folder: Path) -> Path:
    for suffix in ("safetensors", "bin"):
        path = folder / f"{DIFFUSERS_STEM}.{suffix}"
        if path.is_file():
            return path
    variants = _variants(folder)
    if len(variants) == 1:
        return variants[0]
    if variants:
        raise InputError(
            f"{folder}: holds several variants; give the path of one of "
            f"{', '.join(path.name for path in variants)}"
        )
    raise InputError(
        f"{folder}: has no weights; valid: {DIFFUSERS_STEM}.safetensors, or its shards with "
        f"{DIFFUSERS_STEM}.safetensors.index.json"
    )


def _placed(index_path: Path) -> dict[Path, set[str]]:
    """Names of the tensors that each shard holds, by path in order of the names."""
    index = read_json(index_path, "shard index")
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise InputError(f"{index_path}: key 'weight_map' must say which file holds each tensor")
    for file in placed.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"{index_path}: {file!r} is not the name of a file beside it")
    shards: dict[Path, set[str]] = {}
    for file in sorted(set(placed.values())):
        path = index_path.with_name(file)
        if not path.is_file():
            raise InputError(f"{path}: does not exist, but {index_path.name} names it")
        shards[path] = {name for name, place in placed.items() if place == file}
    return shards


def _read_shards(index_path: Path, placed: Mapping[Path, set[str]]) -> LazyState:
    """Tensors of all shards; refuses those that the index does not account for."""
    state = LazyState.of({})
    for path, expected in placed.items():
        shard = _read_file(path)
        differing = sorted(expected ^ set(shard))
        if differing:
            where = "is missing" if differing[0] in expected else "is not in the index"
            raise InputError(
                f"{path}: does not fit {index_path.name}: tensor {differing[0]!r} {where}"
            )
        state = state | shard
    return state


def _read_file(path: Path) -> LazyState:
    if is_safetensors(path):
        return read_safetensors(path)
    content = read_torch(path)
    if not is_state(content):
        raise InputError(f"{path}: does not hold the bare state dict of a diffusers model")
    return LazyState.of(content)
