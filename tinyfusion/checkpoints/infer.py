"""Architecture of a network from the shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tinyfusion.errors import InputError


def infer_dit(state: Mapping[str, Tensor], origin: str) -> dict[str, Any]:
    """Constructor arguments of a DiT from its state dict, without the number of heads.

    The label table does not say whether it has a row for the null class; its last row is taken
    for one, as in every published file.

    Args:
        state: tensors under public DiT names, which are those of SiT too.
        origin: name of the file, for error messages.

    Returns:
        Arguments of :class:`~tinyfusion.backbones.dit.DiT` but ``num_heads``.

    Raises:
        InputError: the tensors are not those of a DiT.
    """
    width, channels, patch_size, _ = _shape(state, "x_embedder.proj.weight", 4, origin)
    num_tokens = _shape(state, "pos_embed", 3, origin)[1]
    mlp_width = _shape(state, "blocks.0.mlp.fc1.weight", 2, origin)[0]
    num_rows = _shape(state, "y_embedder.embedding_table.weight", 2, origin)[0]
    patch_values = _shape(state, "final_layer.linear.weight", 2, origin)[0]

    grid_side = math.isqrt(num_tokens)
    if grid_side**2 != num_tokens:
        raise InputError(
            f"{origin}: pos_embed has {num_tokens} positions; valid: the square of an integer"
        )
    out_over_in = patch_values / (patch_size**2 * channels)
    if out_over_in not in (1, 2):
        raise InputError(
            f"{origin}: final_layer.linear.weight has {patch_values} rows; valid with patch size "
            f"{patch_size} and {channels} channels: {patch_size**2 * channels}, or twice that "
            "with learned variance"
        )
    return {
        "input_size": grid_side * patch_size,
        "patch_size": patch_size,
        "in_channels": channels,
        "hidden_size": width,
        "depth": _depth(state, origin),
        "mlp_ratio": _ratio(mlp_width, width),
        "num_classes": num_rows - 1,
        "class_dropout_prob": 0.1,
        "learn_sigma": out_over_in == 2,
    }


def _shape(state: Mapping[str, Tensor], name: str, rank: int, origin: str) -> tuple[int, ...]:
    if name not in state:
        raise InputError(
            f"{origin}: not a DiT state dict: it has no tensor {name!r}{_what_instead(state)}"
        )
    shape = tuple(state[name].shape)
    if len(shape) != rank or 0 in shape:
        raise InputError(f"{origin}: not a DiT state dict: tensor {name!r} has shape {shape}")
    return shape


def _what_instead(state: Mapping[str, Tensor]) -> str:
    """A guess at what some tensors are, by their names."""
    if any(name.startswith("transformer_blocks.") for name in state):
        return ", but those of a diffusers transformer; keep its config.json beside it"
    if any(".lora_" in name for name in state):
        return ", but those of a LoRA adapter; give the model that it belongs to"
    return f" (first tensors: {', '.join(list(state)[:3])})"


def _depth(state: Mapping[str, Tensor], origin: str) -> int:
    matches = (re.match(r"blocks\.(\d+)\.", name) for name in state)
    found = {int(match[1]) for match in matches if match}
    missing = sorted(set(range(max(found) + 1)) - found)
    if missing:
        raise InputError(f"{origin}: blocks are numbered up to {max(found)} without {missing}")
    return len(found)


def _ratio(mlp_width: int, width: int) -> float:
    # The constructor truncates width * ratio, which rounding may have put just below mlp_width.
    ratio = mlp_width / width
    return ratio if int(width * ratio) == mlp_width else math.nextafter(ratio, math.inf)
