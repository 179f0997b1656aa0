"""What a checkpoint is, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyfusion.backbones.dit import PUBLISHED_HEADS
from tinyfusion.backbones.presets import FAMILIES, build_empty
from tinyfusion.checkpoints.checkpoint import Checkpoint
from tinyfusion.checkpoints.construct import shape_misfits
from tinyfusion.checkpoints.convention import PUBLISHED, STOCK
from tinyfusion.checkpoints.infer import infer_dit
from tinyfusion.errors import InputError


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts about a checkpoint as data that JSON can hold.

    What the file does not say is ``None``.

    Raises:
        InputError: the tensors are those of no known architecture.
    """
    inferred = infer_dit(checkpoint.state, str(checkpoint.path))
    arguments = inferred | (checkpoint.arguments or {})
    width, heads = arguments["hidden_size"], arguments.get("num_heads")
    channels = arguments["in_channels"]
    null_row = checkpoint.arguments is None or arguments["class_dropout_prob"] > 0
    family = checkpoint.backbone
    return {
        "kind": "model",
        "format": checkpoint.layout,
        "architecture": _name(family) if family else "DiT or SiT",
        "backbone": family,
        "depth": arguments["depth"],
        "width": width,
        "heads": heads,
        "heads_by_width": PUBLISHED_HEADS.get(width) if heads is None else None,
        "mlp_width": int(width * arguments["mlp_ratio"]),
        "patch_size": arguments["patch_size"],
        "input_size": arguments["input_size"],
        "in_channels": channels,
        "num_classes": arguments["num_classes"],
        "null_class": null_row,
        "learn_sigma": arguments["learn_sigma"],
        "out_channels": channels * (2 if arguments["learn_sigma"] else 1),
        "parameters": sum(tensor.numel() for tensor in checkpoint.state.values()),
        "dtypes": list(checkpoint.dtypes),
        "files": [str(file) for file in checkpoint.files],
        "bytes": sum(file.stat().st_size for file in checkpoint.files),
        "sha256": checkpoint.sha256,
        "convention": _convention(checkpoint),
        "kept_from": None if checkpoint.kept_from is None else list(checkpoint.kept_from),
        "provenance": checkpoint.provenance,
        "also_holds": checkpoint.also,
        "notes": [*checkpoint.notes, *_misfits(checkpoint, arguments, inferred)],
    }


def _name(family: str) -> str:
    return FAMILIES[family].__name__ if family in FAMILIES else family


def _misfits(
    checkpoint: Checkpoint, arguments: Mapping[str, Any], inferred: Mapping[str, Any]
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
        net = build_empty({"num_heads": 1, **arguments, "backbone": checkpoint.backbone or "dit"})
    except InputError as error:
        return [f"it won't load: {error}"]
    misfits = shape_misfits(checkpoint.state, net)
    return [f"it won't load, because its tensors don't fit together: {misfits}"] if misfits else []


def _convention(checkpoint: Checkpoint) -> dict[str, Any]:
    """The two numbers that shapes don't show, and what they mean."""
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
