"""PyTorch files that hold more than a state dict: the model in them, and facts from the rest."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from torch import Tensor

from tinyfusion.backbones.presets import FAMILIES, families_by
from tinyfusion.checkpoints.averages import Chosen
from tinyfusion.checkpoints.checkpoint import Checkpoint
from tinyfusion.checkpoints.tensors import is_state
from tinyfusion.errors import InputError
from tinyfusion.text import shell_word

TRAINING = "training checkpoint"
"""How the layout of a file with more than the weights begins."""

ARGUMENTS = ("args", "hyper_parameters", "hparams", "config", "cfg")
"""Keys under which training scripts and trainers record what they were told."""


_LATENT_FACTORS = (1, 4, 8, 16)
"""Pixels per position of what networks are trained on: pixels, or an autoencoder's latents."""


def refuse_resume_point(path: Path, content: Any) -> None:
    """Refuse what a run of ours is continued from.

    Raises:
        InputError: the file is one.
    """
    if is_lightning(content) and "tinyfusion" in content:
        raise InputError(f"{path}: {lightning_summary(path, content)}")


def refuse_without_weights(path: Path, content: Any) -> NoReturn:
    """Say what a PyTorch file without weights of a model holds.

    Raises:
        InputError: always.
    """
    if is_lightning(content):
        raise InputError(f"{path}: {lightning_summary(path, content)}")
    found = list(content)[:5] if isinstance(content, Mapping) else type(content).__name__
    raise InputError(
        f"{path}: holds neither a state dict nor a training checkpoint with one, found {found}"
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


def with_training_facts(checkpoint: Checkpoint, content: Any, chosen: Chosen) -> Checkpoint:
    """Add what the rest of a file records.

    Args:
        checkpoint: the weights.
        content: all that the file holds; of a safetensors file nothing.
        chosen: which of its tensors the weights are.
    """
    key, rest = chosen.copy.key, content if isinstance(content, Mapping) else {}
    recorded_under = [word for word in ARGUMENTS if _as_mapping(rest.get(word))]
    # Keys around copies, and tensors, are named below.
    known = {
        chosen.copy.at[:1],
        *(c.at[:1] for c in chosen.others),
        *((w,) for w in recorded_under),
    }
    also = {
        str(name): _in_words(value)
        for name, value in rest.items()
        if (name,) not in known and not isinstance(value, Tensor)
    }
    for copy in chosen.others:
        also[copy.key or "outermost level"] = f"state dict of {len(copy.names)} tensors"
    apart = [name for name in chosen.apart if name not in also]
    if apart:
        listed = ", ".join(apart[:3]) + (", ..." if len(apart) > 3 else "")
        also[f"{len(apart)} further tensor(s)"] = listed
    args = {k: _plain(v) for word in recorded_under for k, v in _as_mapping(rest[word]).items()}
    family, recorded = _from_args(args)
    notes = _contradictions(args, checkpoint, family, recorded)
    if chosen.filled:
        names = ", ".join(chosen.filled[:3]) + (", ..." if len(chosen.filled) > 3 else "")
        notes.insert(
            0,
            f"the averages leave out {len(chosen.filled)} of {len(chosen.copy.names)} tensors, "
            f"which are taken from {chosen.filled_from!r} ({names})",
        )
    layout = checkpoint.layout
    if key:
        layout = f"{TRAINING}, weights under {key!r}"
        averages = [copy.key for copy in chosen.others if copy.averaged]
        if not chosen.copy.averaged:
            layout += (
                f" (as asked for; averaged ones are under {', '.join(map(repr, averages))})"
                if averages
                else " (it holds no averaged ones)"
            )
    return replace(
        checkpoint,
        backbone=family,
        hints={key: value for key, (_, value) in recorded.items()},
        layout=layout,
        provenance={"args": args} if args else {},
        also=also,
        notes=tuple(notes),
    )


def _as_mapping(value: Any) -> dict[str, Any]:
    """Recorded arguments by name; empty for what is none."""
    value = vars(value) if isinstance(value, argparse.Namespace) else value
    if not isinstance(value, Mapping) or any(isinstance(item, Tensor) for item in value.values()):
        return {}
    return {str(key): item for key, item in value.items()}


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
    family: str | None,
    recorded: Mapping[str, tuple[str, Any]],
) -> list[str]:
    """Where the recorded arguments say something else than the tensors, which are believed.

    Args:
        args: all that is recorded.
        checkpoint: the weights.
        family: whose script recorded them; ``None`` for an unknown script, whose arguments are
            compared where they have the names of the constructor's.
        recorded: constructor arguments by recorded ones.
    """
    fitting = families_by(checkpoint.state)
    kind = FAMILIES.get(family or next(iter(fitting), ""))
    if not args or kind is None or kind.public_files is None:
        return []
    known = {key: value for key, (_, value) in recorded.items()}
    try:
        found = kind.public_files.infer(
            checkpoint.state.meta, str(checkpoint.path), {"num_heads": 1, **known}
        )
    except InputError:  # building the network says what is wrong
        return []
    same = {k: (k, args[k]) for k in found if k not in recorded and _is_number(args.get(k))}
    notes = []
    for key, (word, value) in {**recorded, **same}.items():
        if found[key] != value:
            means = f", which means {key}={value}" if key in recorded else ""
            notes.append(
                f"its args say {word}={args[word]}{means}, but its tensors have "
                f"{key}={found[key]}; the tensors are believed"
            )
    side = args.get("image_size")
    sizes = {found["input_size"] * factor for factor in _LATENT_FACTORS}
    if "input_size" not in {**recorded, **same} and type(side) is int and side not in sizes:
        notes.append(
            f"its args say image_size={side}, but its tensors have "
            f"input_size={found['input_size']}; the tensors are believed"
        )
    return notes


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


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
