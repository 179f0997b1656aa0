"""From a checkpoint to a module, checked against what the user expects it to be."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import (
    FAMILIES,
    build_empty,
    class_of,
    families_by,
)
from tinyfusion.checkpoints.checkpoint import kept_indices
from tinyfusion.checkpoints.expected import (
    check_claims,
    claims_after_pruning,
    expected_of,
    in_words,
)
from tinyfusion.checkpoints.read import Checkpoint, read_checkpoint
from tinyfusion.checkpoints.tensors import not_finite
from tinyfusion.checkpoints.training_file import TRAINING
from tinyfusion.errors import InputError
from tinyfusion.notices import notice

logger = logging.getLogger(__name__)


def load(
    path: Path | str,
    backbone: str | Mapping[str, Any] | None = None,
    num_heads: int | None = None,
    dtype: torch.dtype | str | None = None,
    weights: str | None = None,
) -> Backbone:
    """Load any supported checkpoint as a module.

    Tensors are read one at a time and become the module's at once, so that memory is needed for
    the module in its final type and for one tensor besides.

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
        dtype: type of the module: a floating ``torch.dtype`` or its name, such as ``"bfloat16"``;
            ``"auto"`` for that of the file, of several the one with most elements; ``None`` for
            float32, in which commands train and sample.
        weights: key of the weights in a file that holds several, such as ``"model"``; ``None`` for
            the averaged ones.

    Returns:
        The module on the CPU in eval mode.

    Raises:
        InputError: see :func:`~tinyfusion.checkpoints.read_checkpoint`; or the file does not
            fit ``backbone`` or ``num_heads``; or the number of heads is unknown; or the file
            names a class from outside this package that was neither given nor imported before; or
            ``dtype`` is unknown or can't hold the weights.
    """
    _check_dtype(dtype)
    return to_backbone(read_checkpoint(path, weights), backbone, num_heads, dtype, release=True)


def to_backbone(
    checkpoint: Checkpoint,
    backbone: str | Mapping[str, Any] | None = None,
    num_heads: int | None = None,
    dtype: torch.dtype | str | None = None,
    release: bool = False,
) -> Backbone:
    """Build the module that a checkpoint describes; errors as for :func:`load`.

    Args:
        checkpoint: as read.
        backbone: see :func:`load`.
        num_heads: see :func:`load`.
        dtype: see :func:`load`.
        release: take the tensors out of ``checkpoint.state`` one by one, so that those which were
            read into memory are freed one by one, too. The checkpoint has none afterwards.
    """
    wanted = _wanted_dtype(dtype, checkpoint)
    family, claims = expected_of(backbone)
    if num_heads is not None:
        if claims.get("num_heads", num_heads) != num_heads:
            raise InputError(
                f"num_heads={num_heads}, but backbone={in_words(backbone)} has "
                f"{claims['num_heads']}"
            )
        claims["num_heads"] = num_heads
    if family and checkpoint.backbone and family != checkpoint.backbone:
        # Without sizes, which are not what is wrong.
        given = in_words(backbone if isinstance(backbone, str) else family)
        raise InputError(
            f"{checkpoint.path}: is a {checkpoint.backbone!r}, but backbone={given} was given"
        )
    fitting = families_by(checkpoint.state)
    known_family = family or checkpoint.backbone
    for line in _unused(checkpoint):
        notice(f"{checkpoint.path}: {line}")
    if not known_family and len(fitting) > 1:
        _say_once(_taken_for(checkpoint.path, *fitting))
    family = known_family or (fitting or [*FAMILIES])[0]
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
                f"backbone={in_words(backbone)} was given"
            )
        # What shapes don't show is the default of the class.
        known = {**checkpoint.hints, **claims}
        recorded = files.infer(checkpoint.state.meta, str(checkpoint.path), known) if files else {}
    claims = claims_after_pruning(claims, checkpoint, recorded, kind.depth_arguments)
    arguments = recorded | claims
    if files and "num_heads" not in arguments:
        arguments["num_heads"] = _published_heads(
            checkpoint.path, files.heads, arguments.get("hidden_size")
        )

    net = _empty(checkpoint.path, family, arguments)
    misfits = shape_misfits(checkpoint.state.meta, net)
    if misfits:
        what = "the architecture its config or its tensors describe"
        if backbone is not None:
            what = f"backbone={in_words(backbone)}"
        raise InputError(f"{checkpoint.path}: does not fit {what}: {misfits}")
    check_claims(checkpoint, claims)
    _fill(net, checkpoint, wanted, release)
    kept = checkpoint.kept_from
    net.kept_from = kept_indices(kept and list(kept), net.depth, checkpoint.path)
    net.source_borders = checkpoint.source_borders
    return net.eval()


def names_of(families: Sequence[str]) -> str:
    """Names of classes, such as ``DiT or SiT``."""
    return " or ".join(FAMILIES[family].__name__ for family in families)


def _unused(checkpoint: Checkpoint) -> Iterator[str]:
    """What of a file was taken and what was not, in lines for its user."""
    if checkpoint.layout.startswith(TRAINING):
        yield checkpoint.layout
    if checkpoint.also:
        yield f"not used: {', '.join(f'{k} ({v})' for k, v in checkpoint.also.items())}"
    yield from checkpoint.notes


def _taken_for(path: Path, taken: str, *others: str) -> str:
    """Which family a file was taken for, of several that it may be of."""
    return (
        f"{path}: read as {names_of([taken])}; {names_of(others)} files look the same: give "
        f"backbone={' or '.join(others)} for one"
    )


@cache
def _say_once(line: str) -> None:
    # A warning, because that is what a script's user sees without configuring anything.
    logger.warning(line)


def _published_heads(path: Path, heads: Mapping[int, int], width: int | None) -> int:
    if width is None or width not in heads:
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


def _fill(net: Backbone, checkpoint: Checkpoint, dtype: torch.dtype, release: bool) -> None:
    """Make the tensors of a checkpoint those of a module, one after the other."""
    tables = {
        name: table.detach()
        for name, table in net.named_parameters()
        if name in net.fixed_tables and not table.requires_grad
    }
    state: dict[str, Tensor] = {}
    for name in list(checkpoint.state):
        stored = checkpoint.state.take(name) if release else checkpoint.state[name]
        if name in tables and _is_rounded(stored, tables[name]):
            stored = tables[name]
        # Copied in any case: files store tensors at odd addresses, at which some kernels compute
        # otherwise, and a mapped file may be replaced.
        state[name] = stored.to(dtype, copy=True)
        if torch.finfo(dtype).max < torch.finfo(stored.dtype).max and not_finite(state[name]):
            raise InputError(
                f"{checkpoint.path}: dtype={_name_of(dtype)} can't hold tensor {name!r}, whose "
                f"largest magnitude is {stored.abs().max().item():g}; valid: bfloat16, float32"
            )
        del stored
    net.load_state_dict(state, assign=True)
    if dtype != torch.float32:
        net.to(dtype)  # tables that are in no state dict


_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_dtype(dtype: torch.dtype | str | None) -> None:
    if dtype not in (None, "auto", *_DTYPES, *map(_name_of, _DTYPES)):
        valid = ", ".join(["auto", *map(_name_of, _DTYPES)])
        raise InputError(f"dtype={str(dtype).removeprefix('torch.')!r}: valid are {valid}")


def _wanted_dtype(dtype: torch.dtype | str | None, checkpoint: Checkpoint) -> torch.dtype:
    """The type of the module; see :func:`load`."""
    _check_dtype(dtype)
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    name = checkpoint.dtypes[0] if dtype == "auto" else dtype
    found = {_name_of(kind): kind for kind in _DTYPES}.get(name)
    if found is None:
        raise InputError(
            f"{checkpoint.path}: holds {name}, in which networks are not computed, so that "
            "dtype='auto' can't be; give dtype='bfloat16'"
        )
    return found


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
