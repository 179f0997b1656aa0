"""From the range networks see to the range files hold."""

from __future__ import annotations

import torch
from torch import Tensor

from tinyfusion.notices import tally


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 0..255, rounded half up and clamped, same shape (N, ...).

    Values that are not numbers become black; the images that hold any not finite are tallied.
    """
    finite = images.isfinite()
    if not finite.all():
        broken = int((~finite.reshape(len(images), -1)).any(1).sum())
        tally("image(s) held values that are not finite: drawn black or white there", broken)
        images = images.nan_to_num(nan=-1.0)
    return (127.5 * images + 128.0).clamp(0, 255).to(torch.uint8)
