"""Distance of hidden states: without massive activations (TinyFusion, 4.4), or on one scale.

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, Calibration, run_plain
from tinyfusion.errors import InputError
from tinyfusion.states import States, map_streams, streams

MASKS = ("none", "separate", "intersection")
SCALES = ("none", "teacher")


def ordinary(states: States, num_sigmas: float) -> States:
    """True where a state lies within ``num_sigmas`` standard deviations of its sample's mean.

    Mean and unbiased standard deviation are taken per sample over tokens and channels together,
    as in the reference implementation of TinyFusion; of several streams, in each by itself.
    """

    def within(states_BTD: Tensor) -> Tensor:
        flat = states_BTD.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        # `std` would sum one number at a time; half precision would not hold the sum.
        dtype = torch.promote_types(flat.dtype, torch.float32)
        length = torch.linalg.vector_norm(centred, dim=1, keepdim=True, dtype=dtype)
        limit = length * (num_sigmas / math.sqrt(max(1, flat.shape[1] - 1)))
        return (centred.abs() < limit).view_as(states_BTD)

    return map_streams(within, states)


def feature_distance(
    student: States, teacher: States, mask: str, num_sigmas: float = 2.0
) -> Tensor:
    """Mean squared distance of hidden states, one per sample.

    Of several streams the mean of their distances: each has the same weight, however many tokens
    and channels it has.

    Args:
        student: states after the aligned student block.
        teacher: states after the teacher block, same shapes, no gradient.
        mask: ``none`` compares all entries (RepKD); ``separate`` zeroes each side's own massive
            entries and averages over all entries (the reference code: an entry massive on one
            side only is compared with zero); ``intersection`` averages over the entries that are
            ordinary on both sides (the paper's text).
        num_sigmas: entries this many standard deviations from the mean are massive, > 0.

    Returns:
        Shape (B,), squared units of the states.

    Raises:
        InputError: another mask name, ``num_sigmas`` not positive, or another number of streams
            on each side.
    """
    counts = len(streams(student)), len(streams(teacher))
    if counts[0] != counts[1]:
        raise InputError(
            f"the student's hidden states have {counts[0]} stream(s), the teacher's {counts[1]}: "
            "they can't be compared"
        )
    if mask not in MASKS:
        raise InputError(f"feature_mask={mask!r} is not known; valid: {', '.join(MASKS)}")
    if mask == "none":
        return _mean_of_streams(
            lambda student_BTD, teacher_BTD: ((student_BTD - teacher_BTD) ** 2).flatten(1).mean(1),
            student,
            teacher,
        )
    if num_sigmas <= 0:
        raise InputError(f"num_sigmas={num_sigmas} must be positive")
    with torch.no_grad():
        student_ok, teacher_ok = ordinary(student, num_sigmas), ordinary(teacher, num_sigmas)
    return masked_distance(student, teacher, student_ok, teacher_ok, mask)


def masked_distance(
    student: States, teacher: States, student_ok: States, teacher_ok: States, mask: str
) -> Tensor:
    """The two readings of masked distillation, with masks that were computed before.

    Args:
        student: see `feature_distance`.
        teacher: likewise.
        student_ok: what `ordinary` found of the student's states.
        teacher_ok: the same of the teacher's.
        mask: ``separate`` or ``intersection``.

    Returns:
        See `feature_distance`.
    """

    def separate(mine: Tensor, theirs: Tensor, mine_ok: Tensor, theirs_ok: Tensor) -> Tensor:
        difference = mine_ok * mine - theirs_ok * theirs
        return (difference**2).flatten(1).mean(1)

    def intersection(mine: Tensor, theirs: Tensor, mine_ok: Tensor, theirs_ok: Tensor) -> Tensor:
        both = (mine_ok & theirs_ok).to(mine.dtype)
        squared = both * (mine - theirs) ** 2
        return squared.flatten(1).sum(1) / both.flatten(1).sum(1).clamp(min=1)

    of_stream = separate if mask == "separate" else intersection
    return _mean_of_streams(of_stream, student, teacher, student_ok, teacher_ok)


def _mean_of_streams(distance: Callable[..., Tensor], *states: States) -> Tensor:
    """Mean over streams of a distance (B,) of each."""
    return torch.stack(streams(map_streams(distance, *states))).mean(0)


def mean_squares(net: Backbone, blocks: Sequence[int], calibration: Calibration) -> list[float]:
    """``E||h||^2`` per entry of the states after some blocks, over calibration data.

    Per entry, as the distances that are put on one scale by it are means over entries: stacks
    whose states have other numbers of tokens (MAR) can be compared. Of several streams the mean of
    their figures, as in `feature_distance`.

    Args:
        net: the network.
        blocks: indices of its blocks; one may be named several times.
        calibration: inputs.

    Returns:
        One number for each of ``blocks``, squared units of the states.
    """
    wanted = frozenset(blocks)
    squares: dict[int, defaultdict[int, float]] = {block: defaultdict(float) for block in wanted}
    entries: dict[int, defaultdict[int, int]] = {block: defaultdict(int) for block in wanted}

    def runner(index: int, block: nn.Module, states: States, condition: Any) -> States:
        out = run_plain(index, block, states, condition)
        if index in wanted:
            for number, stream in enumerate(streams(out)):
                squares[index][number] += float(stream.double().square().sum())
                entries[index][number] += stream.numel()
        return out

    with torch.no_grad():
        calibration.predict(net, runner)
    return [
        fmean(total / entries[block][number] for number, total in squares[block].items())
        for block in blocks
    ]


def one_scale(norms: Sequence[float], blocks: Sequence[int]) -> list[float]:
    """Weights ``max(n) / n_a`` by which relative distances count the same in every pair.

    Laptop-Diff (arXiv 2404.11098) divides feature terms by the norm of the teacher's features; its
    exact expression was not published, this one is ours.

    Args:
        norms: what `mean_squares` gave for the teacher.
        blocks: the teacher's blocks that they belong to, for the message.

    Raises:
        InputError: a norm that is not positive and finite.
    """
    for norm, block in zip(norms, blocks, strict=True):
        if not (math.isfinite(norm) and norm > 0):
            raise InputError(
                f"recovery.feature_scale=teacher: the mean square of the teacher's states after "
                f"block {block} is {norm:g} but must be positive and finite; give "
                "recovery.feature_scale=none, or another teacher"
            )
    return [max(norms) / norm for norm in norms]
