"""What a backbone's class knows of files of its models that other programs write.

Reading, describing and exporting checkpoints asks the class for this, and for nothing by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from tinyfusion.errors import InputError

Infer = Callable[[Mapping[str, Tensor], str, Mapping[str, Any]], dict[str, Any]]
"""``infer(state, origin, known) -> arguments``, see `PublicFiles.infer`."""

DIFFUSERS_BLOCKS = "transformer_blocks"
"""Name of the module list that holds the blocks of a transformer of diffusers."""


@dataclass(frozen=True)
class PublicFiles:
    """Files with the tensor names of the class.

    Attributes:
        marks: beginnings of tensor names, of which a file holds one only if it is such a file.
        infer: gives the constructor arguments that the tensors of a bare state dict show, all but
            ``num_heads``. It is given the state dict, the name of the file for error messages,
            and arguments that are known otherwise, of which it takes what shapes don't show; it
            raises `InputError` if the tensors are not those of the class.
        heads: attention heads of the published models by their width.
        from_training_args: constructor arguments by the recorded ones of a public training script,
            each with the key that it was read from; ``None`` if they are those of another script.
        citation: the paper in BibTeX.
        unseen: arguments besides ``num_heads`` that shapes don't show; `infer` has a usual value.
    """

    marks: tuple[str, ...]
    infer: Infer
    heads: Mapping[int, int]
    from_training_args: Callable[[Mapping[str, Any]], dict[str, tuple[str, Any]] | None]
    citation: str
    unseen: tuple[str, ...] = ()

    def fit(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict looks like one of these files."""
        return any(name.startswith(self.marks) for name in state)


@dataclass(frozen=True)
class DiffusersFiles:
    """Files of the class of diffusers that computes the same network.

    Attributes:
        class_names: what ``_class_name`` in their ``config.json`` may be; the first is the class
            that is written.
        read: gives tensors under the names of the backbone and its constructor arguments, of the
            tensors as stored, the config and the name of the file for error messages; raises
            `InputError` if they are not those of the class.
        write: gives tensors as stored and the config, of a backbone of the class; raises as
            ``check`` does.
        check: refuses, by `InputError`, a backbone that the class of diffusers can't hold.
    """

    class_names: tuple[str, ...]
    read: Callable[
        [Mapping[str, Tensor], Mapping[str, Any], str], tuple[dict[str, Tensor], dict[str, Any]]
    ]
    write: Callable[[Any], tuple[dict[str, Tensor], dict[str, Any]]]
    check: Callable[[Any], None]


def shape_of(
    state: Mapping[str, Tensor], name: str, rank: int, origin: str, kind: str
) -> tuple[int, ...]:
    """Shape of a tensor that a file of this kind must have.

    Args:
        state: the file's tensors.
        name: of the tensor.
        rank: number of axes that it must have.
        origin: name of the file, for the message.
        kind: what the file should be, such as ``"DiT"``, for the message.

    Raises:
        InputError: the tensor is absent, has another number of axes, or an axis of length 0.
    """
    if name not in state:
        raise InputError(
            f"{origin}: not a {kind} state dict: it has no tensor {name!r}{_what_instead(state)}"
        )
    shape = tuple(state[name].shape)
    if len(shape) != rank or 0 in shape:
        raise InputError(f"{origin}: not a {kind} state dict: tensor {name!r} has shape {shape}")
    return shape


def _what_instead(state: Mapping[str, Tensor]) -> str:
    """A guess at what some tensors are, by their names."""
    if any(name.startswith(f"{DIFFUSERS_BLOCKS}.") for name in state):
        return ", but those of a diffusers transformer; keep its config.json beside it"
    if any(".lora_" in name for name in state):
        return ", but those of a LoRA adapter; give the model that it belongs to"
    return f" (first tensors: {', '.join(list(state)[:3])})"


def count_modules(state: Mapping[str, Tensor], name: str, origin: str) -> int:
    """Length of a module list, such as ``blocks``, from the numbers in the names of its tensors.

    Raises:
        InputError: a number is left out.
    """
    pattern = re.compile(rf"{re.escape(name)}\.(\d+)\.")
    found = {int(match[1]) for match in map(pattern.match, state) if match}
    missing = sorted(set(range(max(found, default=-1) + 1)) - found)
    if missing:
        raise InputError(f"{origin}: {name} are numbered up to {max(found)} without {missing}")
    return len(found)


class Inside(NamedTuple):
    """What the tensors of transformer blocks with the names of this package's layers show.

    Attributes:
        qkv_rows: outputs of the joint q, k, v projection.
        mlp_width: outputs of the MLP's first layer.
        removed: names of branches of which no block holds any tensor, though it holds others.
    """

    qkv_rows: int
    mlp_width: int
    removed: tuple[str, ...]


def inside_blocks(
    state: Mapping[str, Tensor], stacks: Mapping[str, int], width: int, origin: str, kind: str
) -> Inside:
    """Read the inner sizes of blocks, of which some may lack their attention or their MLP.

    Args:
        state: the file's tensors.
        stacks: number of blocks by the name of their list.
        width: of the residual stream; taken for that of what no block has.
        origin: name of the file, for messages.
        kind: what the file should be, for messages.

    Raises:
        InputError: tensors of other shapes than a block's, or no block.
    """
    parts = {"attn": "attn.qkv.weight", "mlp": "mlp.fc1.weight"}
    found: dict[str, int] = {}
    removed = []
    blocks = [f"{stack}.{number}" for stack, count in stacks.items() for number in range(count)]
    for block in blocks:
        for branch, tensor in parts.items():
            if any(name.startswith(f"{block}.{branch}.") for name in state):
                rows = shape_of(state, f"{block}.{tensor}", 2, origin, kind)[0]
                found.setdefault(branch, rows)
            else:
                removed.append(f"{block}.{branch}")
    if not found:
        shape_of(state, f"{next(iter(stacks))}.0.attn.qkv.weight", 2, origin, kind)
    return Inside(found.get("attn", 3 * width), found.get("mlp", 4 * width), tuple(removed))


def grid_side(num_tokens: int, name: str, origin: str) -> int:
    """Tokens along one side of a square image.

    Raises:
        InputError: the position table ``name`` has no square number of positions.
    """
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise InputError(
            f"{origin}: {name} has {num_tokens} positions; valid: the square of an integer"
        )
    return side


def predicts_variance(
    state: Mapping[str, Tensor], name: str, values: int, rank: int, origin: str, kind: str
) -> bool:
    """Whether the last layer has a variance output beside each of ``values`` predictions.

    Raises:
        InputError: the layer's tensor is absent, or has neither ``values`` rows nor twice as many.
    """
    rows = shape_of(state, name, rank, origin, kind)[0]
    if rows not in (values, 2 * values):
        raise InputError(
            f"{origin}: {name} has {rows} rows; valid for tokens of {values} values: {values}, or "
            "twice that with learned variance"
        )
    return rows == 2 * values


def inner_widths(
    qkv_rows: int, mlp_width: int, width: int, known: Mapping[str, Any], origin: str
) -> dict[str, Any]:
    """Constructor arguments for the widths of attention and MLP inside a block.

    Args:
        qkv_rows: outputs of the joint q, k, v projection.
        mlp_width: outputs of the MLP's first layer.
        width: of the residual stream.
        known: arguments known otherwise, of which ``num_heads`` is taken where heads don't fill
            the width, and ``mlp_ratio`` where ``mlp_width`` is given, too.
        origin: name of the file, for the message.

    Returns:
        ``mlp_ratio``, and ``head_dim`` and ``mlp_width`` where they don't follow from it.

    Raises:
        InputError: heads don't fill the width, and their number is not known or does not divide
            the width of the attention.
    """
    found: dict[str, Any] = {"mlp_ratio": ratio_of(mlp_width, width)}
    if known.get("mlp_width") is not None:
        found = {"mlp_ratio": known.get("mlp_ratio", 4.0), "mlp_width": mlp_width}
    inner, heads = qkv_rows // 3, known.get("num_heads")
    if inner != width:
        if not heads or inner % heads:
            raise InputError(
                f"{origin}: attention is {inner} channels wide in a model of width {width}, which "
                f"was pruned in width: num_heads={heads} can't be; give num_heads= (a divisor of "
                f"{inner}), or keep the config beside the file"
            )
        found["head_dim"] = inner // heads
    return found


def ratio_of(mlp_width: int, width: int) -> float:
    """The ``mlp_ratio`` from which a constructor gets ``mlp_width``."""
    # It truncates width * ratio, which rounding may have put just below mlp_width.
    ratio = mlp_width / width
    return ratio if int(width * ratio) == mlp_width else math.nextafter(ratio, math.inf)
