"""Reading checkpoints of every supported layout, told apart by what is in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyfusion.checkpoints.averages import choose
from tinyfusion.checkpoints.checkpoint import Checkpoint
from tinyfusion.checkpoints.copies import is_average
from tinyfusion.checkpoints.diffusers_folder import (
    is_diffusers,
    read_diffusers,
    read_pipeline,
    weight_files_of,
)
from tinyfusion.checkpoints.export_record import with_record
from tinyfusion.checkpoints.held_tensors import held_in
from tinyfusion.checkpoints.layout import (
    ADAPTER_FILE,
    CONFIG_FILE,
    DIFFUSERS_STEM,
    EXPORT_FILE,
    EXPORT_FORMAT,
    FORMAT,
    PIPELINE_FILE,
    SIDECAR_SUFFIX,
    TRANSFORMER_FOLDER,
    WEIGHT_SUFFIXES,
    WEIGHTS_FILE,
)
from tinyfusion.checkpoints.lazy_state import LazyState
from tinyfusion.checkpoints.locate import resolve
from tinyfusion.checkpoints.own_folder import is_ours, read_own, weights_of
from tinyfusion.checkpoints.tensors import (
    cleaned,
    digest_of,
    dtypes_of,
    is_safetensors,
    read_safetensors,
    read_torch,
)
from tinyfusion.checkpoints.training_file import (
    refuse_resume_point,
    refuse_without_weights,
    with_training_facts,
)
from tinyfusion.errors import InputError
from tinyfusion.files import read_json

__all__ = ["Checkpoint", "look_at", "read_checkpoint", "weights_sha256"]


def read_checkpoint(path: Path | str, weights: str | None = None) -> Checkpoint:
    """Read a checkpoint.

    Supported: a folder written by :func:`~tinyfusion.checkpoints.save_model`; a diffusers folder
    with a ``DiTTransformer2DModel``, in one file or sharded, or of a pipeline around one; a
    PyTorch or safetensors file with a bare state dict (the published DiT, SiT and TinyDiT
    files); a training checkpoint, of which the averaged weights are taken. Of a file inside
    a folder, the ``config.json`` beside it is used if it belongs to it, and so is the record
    beside an export of ours. Prefixes that ``DistributedDataParallel`` and ``torch.compile`` put
    before names are removed.

    Args:
        path: anything that :func:`~tinyfusion.checkpoints.resolve` understands.
        weights: key of the weights in a file that holds several; ``None`` for the averaged ones.

    Returns:
        The checkpoint.

    Raises:
        InputError: the file is missing, damaged, changed since its config was written, of an
            unknown layout, holds anything but tensors, or holds values that are not finite; it
            holds several sets of weights and does not say which one is the average, or none under
            ``weights``.
    """
    path = resolve(path)
    path = path.parent if _stands_for_folder(path) else path
    if path.is_dir():
        _refuse_choice(path, weights)
        return _read_folder(path)
    if path.suffix == ".json":
        raise InputError(f"{path}: a JSON file, not a checkpoint; 'tinyfusion inspect' may know it")
    found = _read_beside_config(path)
    if found is not None:
        _refuse_choice(path, weights)
    return found or _read_bare(path, weights)


def _refuse_choice(path: Path, weights: str | None) -> None:
    if weights is not None:
        raise InputError(
            f"weights={weights!r}: {path} is or belongs to a model folder, which holds one set of "
            "weights; leave weights= out"
        )


def _stands_for_folder(path: Path) -> bool:
    return path.name in (CONFIG_FILE, PIPELINE_FILE) or path.name.endswith(".index.json")


def weights_sha256(path: Path | str) -> str:
    """SHA-256 of a checkpoint's weights, as in :class:`Checkpoint`, without reading tensors.

    Args:
        path: as for :func:`read_checkpoint`.

    Raises:
        InputError: there is no such checkpoint.
    """
    path = resolve(path)
    path = path.parent if _stands_for_folder(path) else path
    if not path.is_dir():
        return digest_of((path,))
    if (path / WEIGHTS_FILE).is_file():
        return digest_of((path / WEIGHTS_FILE,))
    inner = path / TRANSFORMER_FOLDER
    return digest_of(weight_files_of(inner if (path / PIPELINE_FILE).is_file() else path))


def _read_folder(folder: Path) -> Checkpoint:
    _refuse_averages_beside(folder)
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        if (folder / PIPELINE_FILE).is_file():
            return read_pipeline(folder)
        raise InputError(f"{folder}: not a model folder, {_content_of(folder)}")
    config = read_json(config_path, "config")
    if is_ours(config):
        return read_own(config, config_path)
    if is_diffusers(config):
        return read_diffusers(config, config_path)
    raise InputError(
        f'{config_path}: not the config of a model folder, which says "format": "{FORMAT}", nor '
        'of a diffusers model, which says "_class_name"'
    )


def _refuse_averages_beside(folder: Path) -> None:
    """Refuse a folder that holds averages beside its weights: it does not say which are meant.

    Raises:
        InputError: it does; such as ``transformer_ema`` in a pipeline.
    """
    files = [file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES]
    models = [file.parent for file in folder.glob(f"*/{CONFIG_FILE}")]
    for beside in (files, models) if (folder / PIPELINE_FILE).is_file() else (files,):
        averages = [entry for entry in beside if is_average(entry.stem)]
        if averages and len(averages) < len(beside):
            listed = ", ".join(str(entry) for entry in sorted(beside)[:5])
            raise InputError(
                f"{folder}: holds averages beside its weights ({sorted(averages)[0].name}); give "
                f"the path of those to take, one of {listed}"
            )


def _content_of(folder: Path) -> str:
    """What a folder without a model holds, and what to give instead."""
    if (folder / ADAPTER_FILE).is_file():
        return "but a LoRA adapter; give the model that it belongs to"
    models = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}"))
    if models:
        return f"but it holds some; give one of {', '.join(str(folder / name) for name in models)}"
    found = sorted(entry.name for entry in folder.iterdir())
    listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "") if found else "nothing"
    return (
        f"it holds {listed}; valid: {CONFIG_FILE} and {WEIGHTS_FILE}, a diffusers folder, or give "
        "the path of a weight file"
    )


def _read_beside_config(path: Path) -> Checkpoint | None:
    """A weights file of a folder whose config says what it is; ``None`` if none claims it."""
    config_path = path.with_name(CONFIG_FILE)
    if not config_path.is_file():
        return None
    config: Any = read_json(config_path, "config")
    if is_ours(config) and weights_of(config, config_path)["file"] == path.name:
        return read_own(config, config_path)
    if is_diffusers(config) and path.name.startswith(DIFFUSERS_STEM):
        # A shard stands for all shards of its model.
        is_shard = (path.parent / f"{DIFFUSERS_STEM}{path.suffix}.index.json").is_file()
        return read_diffusers(config, config_path, None if is_shard else path)
    return None


def look_at(path: Path | str, weights: str | None = None) -> Checkpoint | None:
    """What a checkpoint records, without reading a tensor of it: neither hashed nor validated.

    Args:
        path: as for :func:`read_checkpoint`.
        weights: as for :func:`read_checkpoint`.

    Returns:
        The checkpoint, of a folder without state; ``None`` where reading it would be refused.
    """
    try:
        path = resolve(path)
        path = path.parent if _stands_for_folder(path) else path
        if not path.is_dir() and not path.with_name(CONFIG_FILE).is_file():
            return _read_bare(path, weights, whole=False)
        folder = path if path.is_dir() else path.parent
        for name in (CONFIG_FILE, EXPORT_FILE, f"{TRANSFORMER_FOLDER}/{EXPORT_FILE}"):
            content: Any = read_json(folder / name, "config") if (folder / name).is_file() else None
            if isinstance(content, dict) and content.get("format") in (FORMAT, EXPORT_FORMAT):
                return Checkpoint(
                    state=LazyState({}, {}),
                    path=folder,
                    sha256="",
                    backbone=str(content.get("backbone")),
                    arguments=dict(content.get("arguments") or {}),
                    provenance=dict(content.get("provenance") or {}),
                )
    except (InputError, OSError, ValueError, TypeError, KeyError):
        pass
    return None


def _read_bare(path: Path, weights: str | None, whole: bool = True) -> Checkpoint:
    content: Any = None
    if is_safetensors(path):
        stored = read_safetensors(path)
        kind, held = "safetensors", held_in(stored.meta)
    else:
        content = read_torch(path)
        refuse_resume_point(path, content)
        kind, held = "PyTorch", held_in(content)
    chosen = choose(held, str(path), weights)
    if chosen is None:
        refuse_without_weights(path, content)
    if content is None:
        # Of a file without mappings paths are names.
        state = stored.renamed({n: held.names[p][1] for n, p in chosen.copy.names.items()})
    else:
        state = LazyState.of({n: held.tensors[p] for n, p in chosen.copy.names.items()})
    checkpoint = Checkpoint(
        state=cleaned(path, state) if whole else state,
        path=path,
        sha256=digest_of((path,)) if whole else "",
        layout=f"bare state dict ({kind})",
        files=(path,),
        dtypes=dtypes_of(state),
    )
    checkpoint = with_training_facts(checkpoint, content, chosen)
    record = path.with_name(path.name + SIDECAR_SUFFIX)
    if whole or not record.is_file():
        return with_record(checkpoint, record)
    content = read_json(record, "export record")
    return replace(
        checkpoint,
        backbone=content["backbone"],
        arguments=content["arguments"],
        provenance=content["provenance"],
    )
