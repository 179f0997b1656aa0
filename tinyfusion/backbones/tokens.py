"""Images as rows of tokens and back, as MAR's network and its process both see them.

Shape suffixes: B batch, T tokens, C channels, H height, W width, P patch size, Ct = C * P * P
entries of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Cut images into square tokens.

    Args:
        x: shape (B, C, H, W), H and W multiples of ``patch_size``.
        patch_size: side P of a token in pixels (or latent positions).

    Returns:
        Tokens row by row of the image, shape (B, T, Ct), T = (H / P) * (W / P); the entries of one
        token are in the order channel, row, column.
    """
    b, c, h, w = x.shape
    p = patch_size
    x = x.reshape(b, c, h // p, p, w // p, p)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // p) * (w // p), c * p * p)


def unpatchify(tokens: Tensor, patch_size: int) -> Tensor:
    """Put the tokens of square images together again.

    Args:
        tokens: shape (B, T, Ct), T a square number.
        patch_size: side P of a token.

    Returns:
        Images, shape (B, C, H, H).
    """
    b, count, entries = tokens.shape
    side, p = math.isqrt(count), patch_size
    x = tokens.reshape(b, side, side, entries // p**2, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, side * p, side * p)


def visible_first(hidden: Tensor, count: int) -> Tensor:
    """Positions of the visible tokens, then of the hidden ones, each in ascending order.

    Args:
        hidden: numbers of the hidden tokens in any order, shape (B, M).
        count: number of tokens T.

    Returns:
        Shape (B, T).
    """
    mask = torch.zeros(len(hidden), count, dtype=torch.int32, device=hidden.device)
    return mask.scatter(1, hidden, 1).argsort(dim=1, stable=True)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens at each sample's own positions.

    Args:
        tokens: shape (B, T, D).
        indices: positions, shape (B, V).

    Returns:
        Shape (B, V, D).
    """
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
