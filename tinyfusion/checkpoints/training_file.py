"""PyTorch files that hold more than a state dict: the model in them, and facts from the rest."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from tinyfusion.backbones.presets import FAMILIES
from tinyfusion.checkpoints.checkpoint import Checkpoint
from tinyfusion.checkpoints.tensors import is_state
from tinyfusion.errors import InputError
from tinyfusion.text import shell_word

TRAINING = "training checkpoint"
"""How the layout of a file with more than the weights begins."""

AVERAGED = ("ema", "model_ema")
"""Keys of averaged weights, which are preferred: of DiT and SiT, and of MAR."""


def pick_state(path: Path, content: Any) -> tuple[dict[str, Any], str | None]:
    """The weights of a PyTorch file, and the key they were under; averaged ones are preferred.

    Raises:
        InputError: the file holds no weights of a model.
    """
    if isinstance(content, Mapping):
        for key in (*AVERAGED, "model"):
            if is_state(content.get(key)):
                return dict(content[key]), key
        if is_state(content):
            return dict(content), None
        if is_lightning(content):
            raise InputError(f"{path}: {lightning_summary(path, content)}")
    found = list(content)[:5] if isinstance(content, Mapping) else type(content).__name__
    raise InputError(
        f"{path}: holds neither a state dict nor a training checkpoint with 'ema', 'model_ema' "
        f"or 'model', found {found}"
    )


def is_lightning(content: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether the content of a PyTorch file is a checkpoint of a Lightning trainer."""
    return isinstance(content, Mapping) and "pytorch-lightning_version" in content


def lightning_summary(path: Path, content: Mapping[str, Any]) -> str:
    """What a Lightning checkpoint is and what can be done with it."""
    step = content.get("global_step")
    if "tinyfusion" not in content:
        return (
            f"a checkpoint of a Lightning trainer at step {step}, whose module is not known here; "
            "save the state dict of its network alone"
        )
    # A training phase's folder lies in the run's.
    runs = [parent for parent in path.absolute().parents[:2] if (parent / "config.yaml").is_file()]
    return (
        f"resume checkpoint of a run at step {step}, not a model; continue with "
        f"{shell_word('resume', runs[0] if runs else 'FOLDER')}"
    )


def with_training_facts(
    checkpoint: Checkpoint, content: Mapping[str, Any], chosen: str
) -> Checkpoint:
    """Add what the rest of a training checkpoint records.

    Args:
        checkpoint: the weights.
        content: all that the file holds.
        chosen: key of the weights.
    """
    also = {str(k): _in_words(v) for k, v in content.items() if k not in (chosen, "args")}
    found = content.get("args")
    args = vars(found) if isinstance(found, argparse.Namespace) else found
    args = {str(k): _plain(v) for k, v in args.items()} if isinstance(args, Mapping) else {}
    family, recorded = _from_args(args)
    averaged = next((key for key in AVERAGED if key in content), None)
    missing = f"it holds no {'usable ' if averaged else ''}{averaged or AVERAGED[0]!r}"
    return replace(
        checkpoint,
        backbone=family,
        hints={key: value for key, (_, value) in recorded.items()},
        layout=f"{TRAINING}, weights under {chosen!r}"
        + ("" if chosen in AVERAGED else f" ({missing})"),
        provenance={"args": args} if args else {},
        also=also,
        notes=tuple(_contradictions(args, checkpoint, family, recorded) if family else []),
    )


def _from_args(args: Mapping[str, Any]) -> tuple[str | None, dict[str, tuple[str, Any]]]:
    """The family whose training script recorded ``args``, and what they say of its arguments."""
    for family, kind in FAMILIES.items():
        recorded = kind.public_files.from_training_args(args) if kind.public_files else None
        if recorded is not None:
            return family, recorded
    return None, {}


def _contradictions(
    args: Mapping[str, Any],
    checkpoint: Checkpoint,
    family: str,
    recorded: Mapping[str, tuple[str, Any]],
) -> list[str]:
    """Where the recorded arguments say something else than the tensors, which are believed."""
    files = FAMILIES[family].public_files
    assert files is not None
    known = {key: value for key, (_, value) in recorded.items()}
    found = files.infer(checkpoint.state.meta, str(checkpoint.path), known)
    return [
        f"its args say {word}={args[word]}, which means {key}={value}, but its tensors have "
        f"{key}={found[key]}; the tensors are believed"
        for key, (word, value) in recorded.items()
        if found[key] != value
    ]


def _in_words(value: Any) -> str:
    if is_state(value):
        return f"state dict of {len(value)} tensors"
    if isinstance(value, Mapping) and {"state", "param_groups"} <= set(value):
        return f"optimizer state of {len(value['state'])} tensors"
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping | list | tuple):
        return f"{type(value).__name__} of {len(value)} entries"
    return str(value)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)
