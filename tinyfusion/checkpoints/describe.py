"""What a checkpoint is, in words and numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from tinyfusion.backbones.by_name import loaded_class
from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import FAMILIES, build_empty, families_by
from tinyfusion.checkpoints.checkpoint import Checkpoint
from tinyfusion.checkpoints.construct import names_of, shape_misfits
from tinyfusion.checkpoints.convention import PUBLISHED, STOCK
from tinyfusion.errors import InputError

# Arguments that have facts of their own, or matter only while a model is trained.
_LISTED = {
    *("input_size", "patch_size", "in_channels", "hidden_size", "num_heads", "mlp_ratio"),
    *("num_classes", "class_dropout_prob", "learn_sigma", "gate_bias_init", "dropout"),
    *("head_dim", "mlp_width", "removed_branches"),
    *PUBLISHED,
}


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts about a checkpoint as data that JSON can hold.

    What the file does not record is ``None``. Of a class from outside this package, whose code is
    not imported for this, only the file's records are given.

    Raises:
        InputError: the tensors are those of no known architecture.
    """
    if checkpoint.backbone not in (None, *FAMILIES):
        return _of_other_class(checkpoint)
    candidates = [checkpoint.backbone] if checkpoint.backbone else families_by(checkpoint.state)
    family = (candidates or [*FAMILIES])[0]  # whose tensors are missed in those of no family
    kind = FAMILIES[family]
    assert kind.public_files is not None
    known = {**checkpoint.hints, **(checkpoint.arguments or {})}
    # The number of heads changes no shape: any will do to say what the tensors are.
    inferred = kind.public_files.infer(
        checkpoint.state.meta, str(checkpoint.path), {"num_heads": 1, **known}
    )
    arguments = inferred | (checkpoint.arguments or {})
    width, heads = arguments["hidden_size"], arguments.get("num_heads")
    channels = arguments["in_channels"]
    stacks = {key: arguments[key] for key in kind.depth_arguments}
    return {
        "kind": "model",
        "format": checkpoint.layout,
        "architecture": names_of(candidates or [family]),
        "backbone": checkpoint.backbone or (family if len(candidates) == 1 else None),
        "depth": sum(stacks.values()),
        "stacks": stacks,
        "removed_branches": list(arguments.get("removed_branches", ())),
        "width": width,
        "heads": heads,
        "heads_by_width": kind.public_files.heads.get(width) if heads is None else None,
        "attention_width": (heads or 1) * arguments.get("head_dim", width // (heads or 1)),
        "mlp_width": arguments.get("mlp_width") or int(width * arguments["mlp_ratio"]),
        "patch_size": arguments["patch_size"],
        "input_size": arguments["input_size"],
        "in_channels": channels,
        "num_classes": arguments["num_classes"],
        "null_class": arguments.get("class_dropout_prob", 0.1) > 0,
        "learn_sigma": arguments["learn_sigma"],
        "out_channels": channels * (2 if arguments["learn_sigma"] else 1),
        "further": {k: v for k, v in arguments.items() if k not in _LISTED and k not in stacks},
        "assumed": [key for key in kind.public_files.unseen if key not in known],
        **_of_any(checkpoint),
        "convention": _convention(kind, checkpoint),
        "notes": [*checkpoint.notes, *_misfits(family, checkpoint, arguments, inferred)],
    }


def _of_any(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts that every architecture has."""
    return {
        "parameters": sum(tensor.numel() for tensor in checkpoint.state.meta.values()),
        "dtypes": list(checkpoint.dtypes),
        "files": [str(file) for file in checkpoint.files],
        "bytes": sum(file.stat().st_size for file in checkpoint.files),
        "sha256": checkpoint.sha256,
        "kept_from": None if checkpoint.kept_from is None else list(checkpoint.kept_from),
        "source_borders": list(checkpoint.source_borders),
        "provenance": checkpoint.provenance,
        "also_holds": checkpoint.also,
    }


def _of_other_class(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts about a model whose class is from outside this package."""
    name = checkpoint.backbone or ""
    notes = list(checkpoint.notes)
    if "." not in name:
        notes.append(f"it won't load: {name!r} is no backbone of this version of tinyfusion")
    elif loaded_class(name) is None:
        notes.append(
            f"its class is not of this package: to load it, give backbone= (_target_: {name})"
        )
    return {
        "kind": "model",
        "format": checkpoint.layout,
        "architecture": name,
        "backbone": name,
        "depth": checkpoint.depth,
        "arguments": checkpoint.arguments or {},
        **_of_any(checkpoint),
        "notes": notes,
    }


def _misfits(
    family: str,
    checkpoint: Checkpoint,
    arguments: Mapping[str, Any],
    inferred: Mapping[str, Any],
) -> list[str]:
    """Why the file won't load, if it won't."""
    recorded = checkpoint.arguments or {}
    free = {"class_dropout_prob"}  # not to be seen in the tensors
    if recorded.get("class_dropout_prob") == 0:
        free.add("num_classes")  # the last row is a class
    contradictions = [
        f"its config says {key}={recorded[key]}, but its tensors have {key}={value}: it won't load"
        for key, value in inferred.items()
        if key not in free and recorded.get(key, value) != value
    ]
    if contradictions:
        return contradictions
    try:
        # The number of heads changes no shape.
        net = build_empty({"num_heads": 1, **arguments, "backbone": family})
    except InputError as error:
        return [f"it won't load: {error}"]
    misfits = shape_misfits(checkpoint.state.meta, net)
    return [f"it won't load, because its tensors don't fit together: {misfits}"] if misfits else []


def _convention(kind: type[Backbone], checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The two numbers that shapes don't show, and what they mean; of a class that has them."""
    if not set(PUBLISHED) <= set(inspect.signature(kind).parameters):
        return None
    recorded = checkpoint.arguments or {}
    numbers = {key: float(recorded.get(key, PUBLISHED[key])) for key in PUBLISHED}
    if checkpoint.arguments is None:
        meaning = "as published (assumed: not in the file)"
    elif numbers == PUBLISHED:
        meaning = "as published"
    elif numbers == STOCK:
        meaning = "as stock diffusers computes"
    else:
        meaning = "neither as published (128, 1e-06) nor as stock diffusers computes (127, 1e-05)"
    return {**numbers, "meaning": meaning}
