"""From a checkpoint to a module, checked against what the user expects it to be."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.by_name import imported_class
from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import (
    DEFAULT_FAMILY,
    FAMILIES,
    PRESETS,
    build_empty,
    class_of,
    families_by,
    family_of,
    preset_family,
)
from tinyfusion.checkpoints.checkpoint import kept_indices
from tinyfusion.checkpoints.read import Checkpoint, read_checkpoint
from tinyfusion.checkpoints.training_file import TRAINING
from tinyfusion.errors import InputError

logger = logging.getLogger(__name__)

# Start values and training settings: they don't change what the network computes.
_FREE_ARGUMENTS = {"gate_bias_init", "class_dropout_prob", "dropout"}


def load(
    path: Path | str,
    backbone: str | Mapping[str, Any] | None = None,
    num_heads: int | None = None,
) -> Backbone:
    """Load any supported checkpoint as a module.

    Args:
        path: a model folder, a weight file, the name of a packaged model (``digits``) or a hub
            id ``owner/name``.
        backbone: what the file is expected to be: a family (``"dit"``, ``"sit"``, ``"mar"``), a
            preset name (``"dit_xl_2_d14"``), the dotted name of a class of your own, which is
            imported, or constructor arguments with the family or name under ``backbone``.
            Arguments left out are taken from the file. A file that does not say whether it is a
            DiT or a SiT, whose tensors are the same, is taken for a DiT. A file that records
            which blocks of another model it was left with may be called that model.
        num_heads: attention heads, for a bare state dict of a width that was not published.

    Returns:
        The module on the CPU in eval mode, in float32.

    Raises:
        InputError: see :func:`~tinyfusion.checkpoints.read_checkpoint`; or the file does not
            fit ``backbone`` or ``num_heads``; or the number of heads is unknown; or the file
            names a class of somebody's own that was neither given nor imported before.
    """
    return to_backbone(read_checkpoint(path), backbone, num_heads)


def to_backbone(
    checkpoint: Checkpoint,
    backbone: str | Mapping[str, Any] | None = None,
    num_heads: int | None = None,
) -> Backbone:
    """Build the module that a checkpoint describes; arguments and errors as for :func:`load`."""
    family, claims = _expected(backbone)
    if num_heads is not None:
        if claims.get("num_heads", num_heads) != num_heads:
            raise InputError(
                f"num_heads={num_heads}, but backbone={_shown(backbone)} has {claims['num_heads']}"
            )
        claims["num_heads"] = num_heads
    if family and checkpoint.backbone and family != checkpoint.backbone:
        # Sizes are no matter here.
        given = _given(backbone if isinstance(backbone, str) else family)
        raise InputError(f"{checkpoint.path}: is a {checkpoint.backbone!r}, but {given}")
    fitting = families_by(checkpoint.state)
    said = family or checkpoint.backbone
    for line in _choices(checkpoint, candidates=[] if said else fitting):
        _say_once(line)
    family = said or (fitting or [*FAMILIES])[0]
    try:
        kind = class_of(family)
        files = kind.public_files
    except InputError as error:
        raise InputError(f"{checkpoint.path}: {error}") from None
    recorded = checkpoint.arguments
    if recorded is None:
        if family in FAMILIES and fitting and family not in fitting:
            raise InputError(
                f"{checkpoint.path}: its tensors have the names of a {names_of(fitting)}, but "
                f"{_given(backbone)}"
            )
        # What shapes don't show is the default of the class.
        known = {**checkpoint.hints, **claims}
        recorded = files.infer(checkpoint.state, str(checkpoint.path), known) if files else {}
    claims = _of_what_is_left(claims, checkpoint, recorded, kind.depth_arguments)
    arguments = recorded | claims
    if files and "num_heads" not in arguments:
        arguments["num_heads"] = _published_heads(
            checkpoint.path, files.heads, arguments.get("hidden_size")
        )

    net = _empty(checkpoint.path, family, arguments)
    misfits = shape_misfits(checkpoint.state, net)
    if misfits:
        what = "the architecture its config or its tensors describe"
        if backbone is not None:
            what = f"backbone={_shown(backbone)}"
        raise InputError(f"{checkpoint.path}: does not fit {what}: {misfits}")
    _check_claims(checkpoint, claims)
    state = {name: tensor.to(torch.float32, copy=True) for name, tensor in checkpoint.state.items()}
    for name, table in net.named_parameters():
        is_fixed = name in net.fixed_tables and not table.requires_grad
        if is_fixed and _is_rounded(checkpoint.state[name], table):
            state[name] = table.detach().clone()
    net.load_state_dict(state, assign=True)
    kept = checkpoint.kept_from
    net.kept_from = kept_indices(kept and list(kept), net.depth, checkpoint.path)
    net.source_borders = checkpoint.source_borders
    return net.eval()


def left_unsaid(
    checkpoint: Checkpoint, backbone: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """What a second model's file does not say of itself, as it is said of the first.

    A teacher may be of another size or family than its student. Where its file could be of several
    families, or hides an argument, what the student is decides.

    Args:
        checkpoint: the second model, as read.
        backbone: what the first is expected to be, with its family under ``backbone``.

    Returns:
        What to expect of the second; ``None`` for nothing.
    """
    family = (backbone or {}).get("backbone")
    if checkpoint.backbone or family not in families_by(checkpoint.state):
        return None
    unseen = [key for key in FAMILIES[family].public_files.unseen if key not in checkpoint.hints]
    return {key: backbone[key] for key in ("backbone", *unseen) if key in backbone}


def names_of(families: Sequence[str]) -> str:
    """Names of classes, such as ``DiT or SiT``."""
    return " or ".join(FAMILIES[family].__name__ for family in families)


def _choices(checkpoint: Checkpoint, candidates: Sequence[str]) -> Iterator[str]:
    """What was taken for granted in reading a file, in lines for its user.

    Args:
        checkpoint: as read.
        candidates: families that the file may be of, the first of which it is taken for.
    """
    if checkpoint.layout.startswith(TRAINING):
        yield f"{checkpoint.path}: {checkpoint.layout}"
    for note in checkpoint.notes:
        yield f"{checkpoint.path}: {note}"
    if len(candidates) > 1:
        taken, *others = candidates
        yield (
            f"{checkpoint.path}: read as {names_of([taken])}; {names_of(others)} files look the "
            f"same: give backbone={' or '.join(others)} for one"
        )


@cache
def _say_once(line: str) -> None:
    # A warning, because that is what a script's user sees without configuring anything.
    logger.warning(line)


def _given(backbone: str | Mapping[str, Any] | None) -> str:
    return f"backbone={_shown(backbone)} was given"


def _shown(backbone: str | Mapping[str, Any] | None) -> str:
    """What was asked for, as the user would write it."""
    if not isinstance(backbone, Mapping):
        return repr(backbone)
    family = backbone.get("backbone", DEFAULT_FAMILY)
    rest = [f"{key}={value}" for key, value in backbone.items() if key != "backbone"]
    return f"{family!r} with {', '.join(rest)}" if rest else repr(family)


def _expected(backbone: str | Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """Family and constructor arguments that the caller asked for."""
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
    """A family that the caller named; a class of somebody's own is imported for it."""
    if "." not in family:
        return family
    # The word for it: one of this package's classes may have been named in full.
    return family_of(imported_class(family))


def _of_what_is_left(
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


def _published_heads(path: Path, heads: Mapping[int, int], width: int | None) -> int:
    if width not in heads:
        raise InputError(
            f"{path}: hidden size {width} is not one of the published widths "
            f"({', '.join(map(str, heads))}) and the file does not say how many "
            "attention heads it has: give num_heads="
        )
    return heads[width]


def _empty(path: Path, family: str, arguments: dict[str, Any]) -> Backbone:
    """The module before the file's tensors become its parameters."""
    try:
        return build_empty({"backbone": family, **arguments})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _is_rounded(stored: Tensor, table: Tensor) -> bool:
    """Whether a file in half precision holds the fixed position table, rounded as its weights."""
    half = stored.dtype in (torch.float16, torch.bfloat16)
    # Its values are within -1..1, where rounding changes them by a quarter of eps at most.
    bound = torch.finfo(stored.dtype).eps / 4 + 1e-6
    return half and bool((stored.float() - table).abs().max() <= bound)


def shape_misfits(state: Mapping[str, Tensor], net: Backbone) -> str:
    """The first three tensors of a file that differ from those of a module, with both shapes.

    Args:
        state: tensors under public names.
        net: the module that they are to become.

    Returns:
        Empty if all fit.
    """
    in_file = {name: tuple(tensor.shape) for name, tensor in state.items()}
    in_net = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    differing = [n for n in {**in_net, **in_file} if in_file.get(n) != in_net.get(n)]
    listed = "; ".join(
        f"{name}: {in_file.get(name, 'absent')} in the file, {in_net.get(name, 'absent')} expected"
        for name in differing[:3]
    )
    rest = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
    return listed + rest


def _check_claims(checkpoint: Checkpoint, claims: Mapping[str, Any]) -> None:
    """Refuse arguments that contradict the config where no tensor's shape would show it."""
    for name, value in claims.items():
        recorded = (checkpoint.arguments or {}).get(name, value)
        if name not in _FREE_ARGUMENTS and recorded != value:
            raise InputError(
                f"{checkpoint.path}: its config says {name}={recorded!r}, but {value!r} was given"
            )
