"""Distance of hidden states: without massive activations (TinyFusion, 4.4), or on one scale.

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, Calibration, run_plain
from tinyfusion.errors import InputError

MASKS = ("none", "separate", "intersection")
SCALES = ("none", "teacher")


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
    return masked_distance(student_BTD, teacher_BTD, student_ok, teacher_ok, mask)


def masked_distance(
    student_BTD: Tensor, teacher_BTD: Tensor, student_ok: Tensor, teacher_ok: Tensor, mask: str
) -> Tensor:
    """The two readings of masked distillation, by masks that are known already.

    Args:
        student_BTD: see `feature_distance`.
        teacher_BTD: likewise.
        student_ok: what `ordinary` found of the student's states.
        teacher_ok: the same of the teacher's.
        mask: ``separate`` or ``intersection``.

    Returns:
        See `feature_distance`.
    """
    if mask == "separate":
        difference = student_ok * student_BTD - teacher_ok * teacher_BTD
        return (difference**2).flatten(1).mean(1)
    both = (student_ok & teacher_ok).to(student_BTD.dtype)
    squared = both * (student_BTD - teacher_BTD) ** 2
    return squared.flatten(1).sum(1) / both.flatten(1).sum(1).clamp(min=1)


def mean_squares(net: Backbone, blocks: Sequence[int], calibration: Calibration) -> list[float]:
    """``E||h||^2`` per entry of the states after some blocks, over calibration data.

    Per entry, as the distances that are put on one scale by it are means over entries: stacks
    whose states have other numbers of tokens (MAR) can be compared.

    Args:
        net: the network.
        blocks: indices of its blocks; one may be named several times.
        calibration: inputs.

    Returns:
        One number for each of ``blocks``, squared units of the states.
    """
    wanted = frozenset(blocks)
    squares = dict.fromkeys(wanted, 0.0)
    entries = dict.fromkeys(wanted, 0)

    def runner(index: int, block: nn.Module, states_BTD: Tensor, condition: Any) -> Tensor:
        out_BTD = run_plain(index, block, states_BTD, condition)
        if index in wanted:
            squares[index] += float(out_BTD.double().square().sum())
            entries[index] += out_BTD.numel()
        return out_BTD

    with torch.no_grad():
        calibration.predict(net, runner)
    return [squares[block] / entries[block] for block in blocks]


def one_scale(norms: Sequence[float], blocks: Sequence[int]) -> list[float]:
    """Weights ``max(n) / n_a`` that give every pair's relative distance the same say.

    Laptop-Diff (arXiv 2404.11098) divides feature terms by the norm of the teacher's features; its
    exact expression was not published, this one is ours.

    Args:
        norms: what `mean_squares` gave for the teacher.
        blocks: the teacher's blocks that they belong to, for the message.

    Raises:
        InputError: a norm that nothing can be divided by.
    """
    for norm, block in zip(norms, blocks, strict=True):
        if not (isfinite(norm) and norm > 0):
            raise InputError(
                f"recovery.feature_scale=teacher: the mean square of the teacher's states after "
                f"block {block} is {norm:g}, by which nothing can be divided; give "
                "recovery.feature_scale=none, or another teacher"
            )
    return [max(norms) / norm for norm in norms]
