"""Layers that more than one backbone is made of, with the tensor names of public checkpoints.

Shape suffixes: B batch, T tokens, D width, F frequencies.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyfusion.errors import InputError


def check_sizes(input_size: int, patch_size: int, hidden_size: int, num_heads: int) -> None:
    """Refuse sizes that leave pixels without a patch or channels without a head.

    Raises:
        InputError: so they do.
    """
    if input_size % patch_size:
        raise InputError(
            f"patch_size must divide input_size, got patch_size={patch_size} and "
            f"input_size={input_size}"
        )
    if hidden_size % num_heads:
        raise InputError(
            f"num_heads must divide hidden_size, got num_heads={num_heads} and "
            f"hidden_size={hidden_size}"
        )


class TimestepEmbedder(nn.Module):
    """Sinusoidal time features (cosines first) followed by a two-layer MLP."""

    num_features = 256

    def __init__(self, width: int, frequency_divisor: float = 128.0) -> None:
        super().__init__()
        self.frequency_divisor = frequency_divisor
        self.mlp = nn.Sequential(
            nn.Linear(self.num_features, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Map times of shape (...) to embeddings of shape (..., D)."""
        k_F = torch.arange(self.num_features // 2, dtype=torch.float32, device=t.device)
        frequencies_F = torch.exp(-math.log(10000.0) * k_F / self.frequency_divisor)
        angles = t[..., None].float() * frequencies_F
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class Attention(nn.Module):
    """Multi-head self-attention with one joint q, k, v projection.

    Args:
        width: channels D of the tokens; a multiple of ``num_heads``.
        num_heads: attention heads.
        dropout: probability with which training drops attention weights and projected channels.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Attend among the tokens of each sample; shape unchanged."""
        B, T, D = x_BTD.shape
        dropout = self.dropout if self.training else 0.0
        qkv = self.qkv(x_BTD).view(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return F.dropout(self.proj(mixed.transpose(1, 2).reshape(B, T, D)), dropout)


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
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Token-wise map; shape unchanged."""
        dropout = self.dropout if self.training else 0.0
        hidden = F.dropout(F.gelu(self.fc1(x_BTD), approximate=self.gelu), dropout)
        return F.dropout(self.fc2(hidden), dropout)
