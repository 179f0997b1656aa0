"""What the user expects a checkpoint to be, validated against what the checkpoint records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyfusion.backbones.by_name import imported_class
from tinyfusion.backbones.presets import (
    DEFAULT_FAMILY,
    FAMILIES,
    PRESETS,
    families_by,
    family_of,
    preset_family,
)
from tinyfusion.checkpoints.checkpoint import Checkpoint
from tinyfusion.errors import InputError

FREE_ARGUMENTS = {"gate_bias_init", "class_dropout_prob", "dropout"}
"""Start values and training settings: they don't change what the network computes."""


def in_words(backbone: str | Mapping[str, Any] | None) -> str:
    """What was asked for, as the user would write it."""
    if not isinstance(backbone, Mapping):
        return repr(backbone)
    family = backbone.get("backbone", DEFAULT_FAMILY)
    rest = [f"{key}={value}" for key, value in backbone.items() if key != "backbone"]
    return f"{family!r} with {', '.join(rest)}" if rest else repr(family)


def expected_of(backbone: str | Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """Family and constructor arguments that the caller asked for.

    Args:
        backbone: as for :func:`~tinyfusion.checkpoints.load`.

    Returns:
        The family, ``None`` if any will do, and the arguments.

    Raises:
        InputError: ``backbone`` names no family, preset or class that can be imported.
    """
    if backbone is None:
        return None, {}
    if not isinstance(backbone, str):
        claims = dict(backbone)
        family = claims.pop("backbone", None)
        return _asked_for(family) if family else None, claims
    if backbone in PRESETS:
        return preset_family(backbone), dict(PRESETS[backbone])
    if backbone in FAMILIES or "." in backbone:
        return _asked_for(backbone), {}
    raise InputError(f"backbone={backbone!r} is unknown; valid: {', '.join([*FAMILIES, *PRESETS])}")


def _asked_for(family: str) -> str:
    """A family that the caller named; a class from outside this package is imported for it."""
    if "." not in family:
        return family
    # By the family's name: one of this package's classes may have been named in full.
    return family_of(imported_class(family))


def claims_after_pruning(
    claims: dict[str, Any],
    checkpoint: Checkpoint,
    recorded: Mapping[str, Any],
    counts: Sequence[str],
) -> dict[str, Any]:
    """Claims about a pruned model without numbers of blocks, where they are those before pruning.

    Args:
        claims: what the model is expected to be.
        checkpoint: the model, which may record which blocks it was left with.
        recorded: its arguments.
        counts: those of them that count blocks.
    """
    kept = checkpoint.kept_from
    if not kept or any(claims.get(key, 0) < recorded.get(key, 0) for key in counts):
        return claims
    if sum(claims[key] for key in counts) <= max(kept):
        return claims
    return {key: value for key, value in claims.items() if key not in counts}


def check_claims(checkpoint: Checkpoint, claims: Mapping[str, Any]) -> None:
    """Refuse arguments that contradict the config where no tensor's shape would show it.

    Args:
        checkpoint: as read.
        claims: constructor arguments that the caller asked for.

    Raises:
        InputError: the checkpoint's config records another value for one of the arguments.
    """
    for name, value in claims.items():
        recorded = (checkpoint.arguments or {}).get(name, value)
        if name not in FREE_ARGUMENTS and recorded != value:
            raise InputError(
                f"{checkpoint.path}: its config says {name}={recorded!r}, but {value!r} was given"
            )


def expected_teacher(
    checkpoint: Checkpoint, student: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """What to expect of a teacher whose file leaves open what it is.

    A teacher may be of another size or family than its student. Where its file could be of several
    families, or hides an argument, what the student is decides.

    Args:
        checkpoint: the teacher, as read.
        student: what the student is expected to be, with its family under ``backbone``.

    Returns:
        The family and arguments that the file does not show; ``None`` if there are none.
    """
    family = student and student.get("backbone")
    if not student or checkpoint.backbone or family not in families_by(checkpoint.state):
        return None
    files = FAMILIES[student["backbone"]].public_files
    unseen = [key for key in files.unseen if key not in checkpoint.hints] if files else []
    return {key: student[key] for key in ("backbone", *unseen) if key in student}
