"""The record of an export of ours: a JSON file beside weights in another program's layout.

Neither the public layout nor diffusers' has a place for the convention that the weights expect,
for the blocks that were kept, or for how the model came about.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import family_of
from tinyfusion.checkpoints.checkpoint import Checkpoint, border_indices, kept_indices
from tinyfusion.checkpoints.layout import EXPORT_FORMAT
from tinyfusion.errors import InputError
from tinyfusion.files import read_json
from tinyfusion.version import __version__

# Not stored by diffusers, and not to be seen in the tensors.
_OWN_ARGUMENTS = {"class_dropout_prob", "gate_bias_init"}


def record_of(net: Backbone, provenance: dict[str, Any] | None, sha256: str) -> dict[str, Any]:
    """The record of an export, with which reading it back loses nothing.

    Args:
        net: the exported model. Its arguments hold the convention: ``frequency_divisor`` and
            ``mlp_norm_eps``.
        provenance: how the model came about, as data that JSON can hold.
        sha256: of the weights as they were written.
    """
    return {
        "format": EXPORT_FORMAT,
        "tinyfusion_version": __version__,
        "backbone": family_of(net),
        "arguments": net.config(),
        "kept_from": None if net.kept_from is None else list(net.kept_from),
        **({"source_borders": list(net.source_borders)} if net.source_borders else {}),
        "provenance": provenance or {},
        "sha256": sha256,
    }


def with_record(checkpoint: Checkpoint, record_path: Path) -> Checkpoint:
    """Add what an export recorded to what was read from its weights.

    Args:
        checkpoint: the weights as read.
        record_path: the record; without such a file ``checkpoint`` is returned as it is.

    Raises:
        InputError: the file is no export record, holds a value of the wrong type or one that
            contradicts the config beside it, or records the hash of other weights.
    """
    if not record_path.is_file():
        return checkpoint
    record = read_json(record_path, "export record")
    if not isinstance(record, dict) or record.get("format") != EXPORT_FORMAT:
        raise InputError(
            f'{record_path}: not a record of an export, which says "format": "{EXPORT_FORMAT}"; '
            "remove it to read the weights without it"
        )
    for key, kind in {
        "backbone": str,
        "arguments": dict,
        "provenance": dict,
        "sha256": str,
    }.items():
        if not isinstance(record.get(key), kind):
            raise InputError(f"{record_path}: key {key!r} is missing or wrong: {record.get(key)!r}")
    if record["sha256"] != checkpoint.sha256:
        raise InputError(
            f"{checkpoint.path}: SHA-256 is {checkpoint.sha256[:12]}..., but {record_path} records "
            f"{record['sha256'][:12]}...: the weights are incomplete, were changed, or belong to "
            "another record"
        )
    arguments = record["arguments"]
    for key, value in (checkpoint.arguments or {}).items():
        if key not in _OWN_ARGUMENTS and arguments.get(key) != value:
            raise InputError(
                f"{record_path}: records {key}={arguments.get(key)!r}, but the config beside it "
                f"means {value!r}; if that was changed on purpose, remove the record"
            )
    return replace(
        checkpoint,
        backbone=record["backbone"],
        arguments=arguments,
        kept_from=kept_indices(record.get("kept_from"), arguments.get("depth"), record_path),
        source_borders=border_indices(record.get("source_borders"), record_path),
        provenance=record["provenance"],
        layout=f"{checkpoint.layout}, exported by tinyfusion",
    )
