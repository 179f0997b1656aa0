"""Layers that more than one backbone is made of, with the tensor names of public checkpoints.

Shape suffixes: B batch, T tokens, S sequence, D width, F frequencies.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyfusion.backbones.branches import Branch, BranchedBlock
from tinyfusion.backbones.forwards import dtype_of
from tinyfusion.backbones.kernels import Linear, gelu
from tinyfusion.errors import InputError

NORM_EPS = 1e-6
"""Epsilon of the layer norms that have parameters, as published."""


def check_sizes(
    input_size: int,
    patch_size: int,
    hidden_size: int,
    num_heads: int,
    head_dim: int | None = None,
    mlp_width: int | None = None,
) -> None:
    """Refuse sizes that leave pixels without a patch or channels without a head.

    Args:
        input_size: side of the square input.
        patch_size: side of a patch.
        hidden_size: width of the residual stream.
        num_heads: attention heads.
        head_dim: channels of a head, if that is not ``hidden_size / num_heads``.
        mlp_width: hidden width of the blocks' MLP, if it is not to follow from a ratio.

    Raises:
        InputError: ``patch_size`` does not divide ``input_size``, ``num_heads`` does not divide
            ``hidden_size`` and there is no ``head_dim``, or ``head_dim`` or ``mlp_width`` is no
            positive integer.
    """
    if input_size % patch_size:
        raise InputError(
            f"patch_size must divide input_size, got patch_size={patch_size} and "
            f"input_size={input_size}"
        )
    for name, value in {"head_dim": head_dim, "mlp_width": mlp_width}.items():
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(
                f"backbone argument {name} must be a positive integer or null, got {value!r}"
            )
    if head_dim is None and hidden_size % num_heads:
        raise InputError(
            f"num_heads must divide hidden_size, got num_heads={num_heads} and "
            f"hidden_size={hidden_size}; give head_dim for heads that don't fill the width"
        )


class _Widths(Protocol):
    hidden_size: int
    num_heads: int
    head_dim: int
    mlp_ratio: float
    mlp_width: int


def uncommon_widths(net: _Widths) -> dict[str, Any]:
    """``head_dim`` and ``mlp_width``, each only if it does not follow from the other sizes."""
    found: dict[str, Any] = {}
    if net.num_heads * net.head_dim != net.hidden_size:
        found["head_dim"] = net.head_dim
    if net.mlp_width != int(net.hidden_size * net.mlp_ratio):
        found["mlp_width"] = net.mlp_width
    return found


def sincos_positions(width: int, grid_side: int) -> Tensor:
    """Fixed two-dimensional sine-cosine position table, shape (1, grid_side**2, width).

    The first half of the channels encodes the column, the second half the row, each as sines
    followed by cosines of frequencies 10000^(-k / (width / 4)).

    Raises:
        InputError: ``width`` is not a multiple of four.
    """
    if width % 4:
        raise InputError(f"hidden_size must be a multiple of 4, got {width}")
    frequencies_F = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    positions = torch.arange(grid_side, dtype=torch.float64)
    rows_T = positions.repeat_interleave(grid_side)
    columns_T = positions.repeat(grid_side)
    parts = []
    for coordinate_T in (columns_T, rows_T):
        angles_TF = coordinate_T[:, None] * frequencies_F[None]
        parts += [angles_TF.sin(), angles_TF.cos()]
    return torch.cat(parts, dim=1).float()[None]


def init_linears(net: nn.Module) -> None:
    """Give every linear layer of a network Xavier weights and no bias, in order of the modules."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def null_class(num_classes: int, has_null: bool) -> int:
    """Label of the null class, which comes after the others.

    Args:
        num_classes: number of classes without it.
        has_null: whether the network was made with it.

    Raises:
        InputError: the network was built without a null class.
    """
    if not has_null:
        raise InputError(
            "this model has no null class (class_dropout_prob=0), so its labels can't be "
            "dropped and it can't be guided: use guidance 1"
        )
    return num_classes


class TimestepEmbedder(nn.Module):
    """Sinusoidal time features (cosines first) followed by a two-layer MLP."""

    num_features = 256

    def __init__(self, width: int, frequency_divisor: float = 128.0) -> None:
        super().__init__()
        self.frequency_divisor = frequency_divisor
        self.mlp = nn.Sequential(Linear(self.num_features, width), nn.SiLU(), Linear(width, width))

    def init_weights(self) -> None:
        """Give both layers the narrow normal start that DiT and MAR were published with."""
        for index in (0, 2):
            nn.init.normal_(self.mlp.get_parameter(f"{index}.weight"), std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        """Map times of shape (...) to embeddings of shape (..., D)."""
        k_F = torch.arange(self.num_features // 2, dtype=torch.float32, device=t.device)
        frequencies_F = torch.exp(-math.log(10000.0) * k_F / self.frequency_divisor)
        angles = t[..., None].float() * frequencies_F
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(features.to(dtype_of(self.mlp)))


class Attention(nn.Module):
    """Multi-head self-attention with one joint q, k, v projection.

    Args:
        width: channels D of the tokens; a multiple of ``num_heads`` without ``head_dim``.
        num_heads: attention heads.
        dropout: probability with which training drops attention weights and projected channels.
        head_dim: channels of a head; ``None`` divides the width among the heads.
    """

    def __init__(
        self, width: int, num_heads: int, dropout: float = 0.0, head_dim: int | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        inner = num_heads * (width // num_heads if head_dim is None else head_dim)
        self.qkv = Linear(width, 3 * inner)
        self.proj = Linear(inner, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Attend among the tokens of each sample; shape unchanged."""
        B, T, _ = x_BTD.shape
        dropout = self.dropout if self.training else 0.0
        qkv = self.qkv(x_BTD).view(B, T, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return F.dropout(self.proj(mixed.transpose(1, 2).reshape(B, T, -1)), dropout)


class Mlp(nn.Module):
    """Two linear layers around a GELU.

    Args:
        width: channels D of the tokens.
        hidden: channels between the layers.
        gelu: ``"tanh"`` or ``"none"`` (exact), the form that the published weights were
            trained with.
        dropout: probability with which training drops channels behind either layer.
    """

    def __init__(self, width: int, hidden: int, gelu: str = "tanh", dropout: float = 0.0) -> None:
        super().__init__()
        self.gelu = gelu
        self.dropout = dropout
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Token-wise map; shape unchanged."""
        dropout = self.dropout if self.training else 0.0
        hidden = F.dropout(gelu(self.fc1(x_BTD), self.gelu), dropout)
        return F.dropout(self.fc2(hidden), dropout)


class PreNormBlock(BranchedBlock):
    """Plain transformer block: nothing but its input conditions it."""

    branch_names = ("attn", "mlp")

    def __init__(
        self, width: int, num_heads: int, head_dim: int, mlp_width: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, num_heads, dropout, head_dim)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, mlp_width, gelu="none", dropout=dropout)

        self.left = list(self.branch_names)

    def branches(self) -> dict[str, Branch]:
        """See `BranchedBlock.branches`; states (B, S, D), the condition is not used."""
        return {name: partial(self._run, name) for name in self.left}

    def remove_branch(self, name: str) -> None:
        """See `BranchedBlock.remove_branch`; its norm goes as well."""
        delattr(self, name)
        delattr(self, _NORM_OF[name])
        self.left.remove(name)

    def _run(self, name: str, x_BSD: Any, condition: Any) -> Tensor:
        return x_BSD + getattr(self, name)(getattr(self, _NORM_OF[name])(x_BSD))


_NORM_OF = {"attn": "norm1", "mlp": "norm2"}
