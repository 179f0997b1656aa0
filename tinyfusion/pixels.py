"""From the range networks see to the range files hold."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 0..255, rounded half up and clamped, same shape."""
    return (127.5 * images + 128.0).clamp(0, 255).to(torch.uint8)
