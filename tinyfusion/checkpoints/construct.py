"""From a checkpoint to a module, checked against what the user expects it to be."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.dit import PUBLISHED_HEADS
from tinyfusion.backbones.presets import FAMILIES, PRESETS, build_empty, preset_family
from tinyfusion.checkpoints.infer import infer_dit
from tinyfusion.checkpoints.read import Checkpoint, read_checkpoint
from tinyfusion.checkpoints.training_file import TRAINING
from tinyfusion.errors import InputError

logger = logging.getLogger(__name__)

# Start values and training settings: they don't change what the network computes.
_FREE_ARGUMENTS = {"gate_bias_init", "class_dropout_prob"}


def load(
    path: Path | str,
    backbone: str | Mapping[str, Any] | None = None,
    num_heads: int | None = None,
) -> Backbone:
    """Load any supported checkpoint as a module.

    Args:
        path: a model folder, a weight file, the name of a packaged model (``digits``) or a hub
            id ``owner/name``.
        backbone: what the file is expected to be: a family (``"dit"``, ``"sit"``), a preset name
            (``"dit_xl_2_d14"``), or constructor arguments with the family under ``backbone``.
            Arguments left out are taken from the file. A file that does not say whether it is a
            DiT or a SiT, whose tensors are the same, is taken for a DiT.
        num_heads: attention heads, for a bare state dict of a width that was not published.

    Returns:
        The module on the CPU in eval mode, in float32.

    Raises:
        InputError: see :func:`~tinyfusion.checkpoints.read_checkpoint`; or the file does not
            fit ``backbone`` or ``num_heads``; or the number of heads is unknown.
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
        raise InputError(
            f"{checkpoint.path}: is a {checkpoint.backbone!r}, but backbone={_shown(backbone)} was "
            "given"
        )
    for line in _choices(checkpoint, assumed=family is None and checkpoint.backbone is None):
        _say_once(line)
    family = family or checkpoint.backbone or "dit"
    if family not in FAMILIES:
        raise InputError(
            f"{checkpoint.path}: backbone {family!r} is unknown; valid: {', '.join(FAMILIES)}"
        )
    recorded = checkpoint.arguments or infer_dit(checkpoint.state, str(checkpoint.path))
    arguments = recorded | claims
    if "num_heads" not in arguments:
        arguments["num_heads"] = _published_heads(checkpoint.path, arguments.get("hidden_size"))

    net = _empty(checkpoint.path, family, arguments)
    misfits = shape_misfits(checkpoint.state, net)
    if misfits:
        what = "the architecture its config or its tensors describe"
        if backbone is not None:
            what = f"backbone={_shown(backbone)}"
        raise InputError(f"{checkpoint.path}: does not fit {what}: {misfits}")
    _check_claims(checkpoint, claims)
    state = {name: tensor.to(torch.float32, copy=True) for name, tensor in checkpoint.state.items()}
    if _is_rounded(checkpoint.state["pos_embed"], net.pos_embed):
        state["pos_embed"] = net.pos_embed.detach().clone()
    net.load_state_dict(state, assign=True)
    net.kept_from = checkpoint.kept_from
    return net.eval()


def _choices(checkpoint: Checkpoint, assumed: bool) -> Iterator[str]:
    """What was taken for granted in reading a file, in lines for its user."""
    if checkpoint.layout.startswith(TRAINING):
        yield f"{checkpoint.path}: {checkpoint.layout}"
    for note in checkpoint.notes:
        yield f"{checkpoint.path}: {note}"
    if assumed:
        yield (
            f"{checkpoint.path}: read as DiT; SiT files look the same: give backbone=sit for one"
        )


@cache
def _say_once(line: str) -> None:
    # A warning, because that is what a script's user sees without configuring anything.
    logger.warning(line)


def _shown(backbone: str | Mapping[str, Any] | None) -> str:
    """What was asked for, as the user would write it."""
    if not isinstance(backbone, Mapping):
        return repr(backbone)
    family = backbone.get("backbone", "dit")
    rest = [f"{key}={value}" for key, value in backbone.items() if key != "backbone"]
    return f"{family!r} with {', '.join(rest)}" if rest else repr(family)


def _expected(backbone: str | Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """Family and constructor arguments that the caller asked for."""
    if backbone is None:
        return None, {}
    if not isinstance(backbone, str):
        claims = dict(backbone)
        return claims.pop("backbone", None), claims
    if backbone in FAMILIES:
        return backbone, {}
    if backbone in PRESETS:
        return preset_family(backbone), dict(PRESETS[backbone])
    raise InputError(f"backbone={backbone!r} is unknown; valid: {', '.join([*FAMILIES, *PRESETS])}")


def _published_heads(path: Path, width: int | None) -> int:
    if width not in PUBLISHED_HEADS:
        raise InputError(
            f"{path}: hidden size {width} is not one of the published widths "
            f"({', '.join(map(str, PUBLISHED_HEADS))}) and the file does not say how many "
            "attention heads it has: give num_heads="
        )
    return PUBLISHED_HEADS[width]


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
