"""Distance of hidden states that leaves out massive activations (TinyFusion, section 4.4).

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinyfusion.errors import InputError

MASKS = ("none", "separate", "intersection")


def ordinary(states_BTD: Tensor, num_sigmas: float) -> Tensor:
    """True where a state lies within ``num_sigmas`` standard deviations of its sample's mean.

    Mean and unbiased standard deviation are taken per sample over tokens and channels together,
    as in the reference implementation of TinyFusion.
    """
    flat = states_BTD.flatten(1)
    mean = flat.mean(1).view(-1, *[1] * (states_BTD.ndim - 1))
    deviation = flat.std(1).view_as(mean)
    return (states_BTD - mean).abs() < num_sigmas * deviation


def feature_distance(
    student_BTD: Tensor, teacher_BTD: Tensor, mask: str, num_sigmas: float = 2.0
) -> Tensor:
    """Mean squared distance of hidden states, one per sample.

    Args:
        student_BTD: states after the aligned student block.
        teacher_BTD: states after the teacher block, same shape, no gradient.
        mask: ``none`` compares all entries (RepKD); ``separate`` zeroes each side's own massive
            entries and averages over all entries (the reference code: an entry massive on one
            side only is compared with zero); ``intersection`` averages over the entries that are
            ordinary on both sides (the paper's text).
        num_sigmas: where massive begins, in standard deviations, > 0.

    Returns:
        Shape (B,), squared units of the states.

    Raises:
        InputError: another mask name, or ``num_sigmas`` not positive.
    """
    if mask not in MASKS:
        raise InputError(f"feature_mask={mask!r} is not known; valid: {', '.join(MASKS)}")
    if mask == "none":
        return ((student_BTD - teacher_BTD) ** 2).flatten(1).mean(1)
    if num_sigmas <= 0:
        raise InputError(f"num_sigmas={num_sigmas} must be positive")
    with torch.no_grad():
        student_ok = ordinary(student_BTD, num_sigmas)
        teacher_ok = ordinary(teacher_BTD, num_sigmas)
    if mask == "separate":
        difference = student_ok * student_BTD - teacher_ok * teacher_BTD
        return (difference**2).flatten(1).mean(1)
    both = (student_ok & teacher_ok).to(student_BTD.dtype)
    squared = both * (student_BTD - teacher_BTD) ** 2
    return squared.flatten(1).sum(1) / both.flatten(1).sum(1).clamp(min=1)
