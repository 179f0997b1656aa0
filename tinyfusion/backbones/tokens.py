"""Images as rows of tokens and back, as MAR's network and its process both see them.

Shape suffixes: B batch, T tokens, C channels, H height, W width, P patch size, Ct = C * P * P
entries of a token.
"""

from __future__ import annotations

import math

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
