"""Hidden states in numbers that take the same memory however many states they describe.

Shape suffixes: B batch, T tokens, D width, E edges, K thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from math import inf, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyfusion.errors import InputError
from tinyfusion.recovery.features import feature_distance, masked_distance, ordinary
from tinyfusion.states import States, batch_of, map_streams, streams

LEAST, LARGEST, PER_DECADE = -3, 5, 40
"""Bins are equally wide up to ``10**LEAST`` and grow by equal factors from there to
``10**LARGEST``, on both sides of 0."""


@cache
def symlog_edges() -> Tensor:
    """Edges of the bins of all histograms, ascending, symmetric around 0, float32, shape (E,).

    They are fixed, so that one pass over the states is enough and histograms can be added. All
    powers of ten from ``10**LEAST`` on are edges.
    """
    inner = torch.arange(PER_DECADE // 2, dtype=torch.float64) / (PER_DECADE // 2) * 10.0**LEAST
    steps = torch.arange((LARGEST - LEAST) * PER_DECADE + 1, dtype=torch.float64)
    upper = torch.cat([inner, 10.0 ** (LEAST + steps / PER_DECADE)])
    return torch.cat([-upper[1:].flip(0), upper]).float()


@dataclass(frozen=True)
class StateSummary:
    """Running figures of the states at one place, over all samples, tokens and channels.

    Of several streams together: their channels and their tokens are numbered one stream after the
    other.

    Attributes:
        count: finite entries.
        non_finite: entries that are infinite or not a number; nothing else counts them but
            ``dropped``.
        mean: of the entries.
        squares: sum of their squared distances to ``mean``.
        histogram: entries between neighbours of `symlog_edges`, int64, shape (E - 1,); what lies
            beyond the last edges is counted in the last bins.
        dropped: entries that masked distillation leaves out, for each of K thresholds.
        channel_low: least entry of every channel, shape (D,).
        channel_high: largest, shape (D,).
        token_low: least entry at every place of the sequence, shape (T,).
        token_high: largest, shape (T,).
    """

    count: int
    non_finite: int
    mean: float
    squares: float
    histogram: Tensor
    dropped: tuple[int, ...]
    channel_low: Tensor
    channel_high: Tensor
    token_low: Tensor
    token_high: Tensor

    @property
    def std(self) -> float:
        """Unbiased standard deviation of all entries."""
        return sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    @property
    def low(self) -> float:
        """Least entry, exact; infinite where there is none."""
        return float(self.channel_low.min())

    @property
    def high(self) -> float:
        """Largest entry, exact; minus infinity where there is none."""
        return float(self.channel_high.max())

    @property
    def dropped_shares(self) -> list[float]:
        """``dropped`` as shares of all entries, 0..1."""
        return [number / max(1, self.count + self.non_finite) for number in self.dropped]

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        tensors = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def as_dict(self, num_sigmas: Sequence[float], top: int = 5) -> dict[str, Any]:
        """Plain data, with the ``top`` channels and tokens of largest magnitude.

        Args:
            num_sigmas: the K thresholds.
            top: how many channels and tokens.
        """
        known = self.count > 0
        return {
            "count": self.count,
            "non_finite": self.non_finite,
            "mean": self.mean,
            "std": self.std,
            "min": self.low if known else None,
            "max": self.high if known else None,
            "dropped": by_threshold(num_sigmas, self.dropped_shares),
            "top_channels": _largest("channel", self.channel_low, self.channel_high, top),
            "top_tokens": _largest("token", self.token_low, self.token_high, top),
            "histogram": self.histogram.tolist(),
        }


def by_threshold(num_sigmas: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """One value for each threshold, by the threshold as it is written in files and tables."""
    return {f"{k:g}": value for k, value in zip(num_sigmas, values, strict=True)}


@torch.no_grad()
def summarise(states: States, num_sigmas: Sequence[float]) -> StateSummary:
    """Figures of one batch of states.

    Args:
        states: states with the batch in front and the channels last; axes in between are taken
            for one.
        num_sigmas: thresholds of `tinyfusion.recovery.features.ordinary`.
    """
    return reduce(_side_by_side, (_of_stream(stream, num_sigmas) for stream in streams(states)))


def _side_by_side(one: StateSummary, other: StateSummary) -> StateSummary:
    """Figures of two streams of the same samples."""
    return replace(
        merged(one, other),
        channel_low=torch.cat([one.channel_low, other.channel_low]),
        channel_high=torch.cat([one.channel_high, other.channel_high]),
        token_low=torch.cat([one.token_low, other.token_low]),
        token_high=torch.cat([one.token_high, other.token_high]),
    )


def _of_stream(states_BTD: Tensor, num_sigmas: Sequence[float]) -> StateSummary:
    dropped = tuple(_dropped(ordinary(states_BTD, k)) for k in num_sigmas)
    states_BTD = states_BTD.float().reshape(len(states_BTD), -1, states_BTD.shape[-1])
    lower_BTD = upper_BTD = states_BTD
    values = states_BTD.flatten()
    finite_BTD = states_BTD.isfinite()
    if not finite_BTD.all():
        lower_BTD = states_BTD.where(finite_BTD, inf)
        upper_BTD = states_BTD.where(finite_BTD, -inf)
        values = states_BTD[finite_BTD]
    exact = values.double()
    mean = exact.mean() if len(exact) else exact.new_zeros(())
    # The outermost edges are no limits: what lies beyond them belongs to the end bins.
    limits = symlog_edges()[1:-1].to(values.device)
    bins = torch.bincount(torch.bucketize(values, limits, right=True), minlength=len(limits) + 1)
    return StateSummary(
        count=len(values),
        non_finite=states_BTD.numel() - len(values),
        mean=float(mean),
        squares=float((exact - mean).square().sum()),
        histogram=bins.cpu(),
        dropped=dropped,
        channel_low=lower_BTD.amin((0, 1)).cpu(),
        channel_high=upper_BTD.amax((0, 1)).cpu(),
        token_low=lower_BTD.amin((0, 2)).cpu(),
        token_high=upper_BTD.amax((0, 2)).cpu(),
    )


def merged(one: StateSummary, other: StateSummary) -> StateSummary:
    """Figures of all the states that two summaries describe.

    Mean and squares are combined by the pairwise update of Chan, Golub and LeVeque (1983), which
    does not lose digits where the mean is large. Sequences and widths may differ in length.
    """
    count = one.count + other.count
    apart = other.mean - one.mean
    share = other.count / max(1, count)
    return StateSummary(
        count=count,
        non_finite=one.non_finite + other.non_finite,
        mean=one.mean + apart * share,
        squares=one.squares + other.squares + apart**2 * one.count * share,
        histogram=one.histogram + other.histogram,
        dropped=tuple(a + b for a, b in zip(one.dropped, other.dropped, strict=True)),
        channel_low=_each(torch.minimum, one.channel_low, other.channel_low, inf),
        channel_high=_each(torch.maximum, one.channel_high, other.channel_high, -inf),
        token_low=_each(torch.minimum, one.token_low, other.token_low, inf),
        token_high=_each(torch.maximum, one.token_high, other.token_high, -inf),
    )


def _each(
    choose: Callable[[Tensor, Tensor], Tensor], one: Tensor, other: Tensor, empty: float
) -> Tensor:
    length = max(len(one), len(other))
    return choose(
        F.pad(one, (0, length - len(one)), value=empty),
        F.pad(other, (0, length - len(other)), value=empty),
    )


def _largest(name: str, low: Tensor, high: Tensor, top: int) -> list[dict[str, float]]:
    """The places of largest magnitude, the largest first."""
    # Where no entry was finite, the least one is above the largest.
    size = torch.maximum(low.abs(), high.abs()).where(low <= high, -1.0)
    order = size.argsort(descending=True, stable=True)[:top]
    return [
        {name: int(i), "min": float(low[i]), "max": float(high[i])} for i in order if size[i] >= 0
    ]


@dataclass
class PairSummary:
    """Running figures of an aligned student and teacher block, as masked distillation sees them.

    Attributes:
        student: the student's block.
        teacher: the teacher's block.
        num_sigmas: K thresholds.
        samples: samples seen.
        entries: entries seen on each side.
        dropped: entries that are outliers on either side, for each threshold.
        distances: sums over samples of the loss's distance: ``none`` unmasked, then, for each
            threshold, of both readings (`tinyfusion.recovery.features.feature_distance`).
    """

    student: int
    teacher: int
    num_sigmas: tuple[float, ...]
    samples: int = 0
    entries: int = 0
    dropped: list[int] = field(default_factory=list)
    distances: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dropped = [0] * len(self.num_sigmas)
        self.distances = {
            "none": [0.0],
            "separate": [0.0] * len(self.num_sigmas),
            "intersection": [0.0] * len(self.num_sigmas),
        }

    @torch.no_grad()
    def add(self, student: States, teacher: States) -> None:
        """Take in the states that both networks have for the same inputs.

        Raises:
            InputError: states of different shapes, which distillation could not compare either.
        """
        mine, theirs = _shapes(student), _shapes(teacher)
        if mine != theirs:
            raise InputError(
                f"states after the student's block {self.student} have shape {mine}, after the "
                f"teacher's block {self.teacher} {theirs}; they can't be compared: give "
                "teacher=none"
            )
        self.samples += batch_of(student)
        self.entries += sum(stream.numel() for stream in streams(student))
        self.distances["none"][0] += float(
            feature_distance(student, teacher, "none").double().sum()
        )
        for place, k in enumerate(self.num_sigmas):
            student_ok, teacher_ok = ordinary(student, k), ordinary(teacher, k)
            both = map_streams(torch.logical_and, student_ok, teacher_ok)
            self.dropped[place] += _dropped(both)
            for mask in ("separate", "intersection"):
                distance_B = masked_distance(student, teacher, student_ok, teacher_ok, mask)
                self.distances[mask][place] += float(distance_B.double().sum())

    def as_dict(self) -> dict[str, Any]:
        """Plain data: the share dropped on either side and mean distances."""
        entries, samples = max(1, self.entries), max(1, self.samples)
        means = {name: [v / samples for v in values] for name, values in self.distances.items()}
        return {
            "student_block": self.student,
            "teacher_block": self.teacher,
            "dropped_by_either": by_threshold(
                self.num_sigmas, [number / entries for number in self.dropped]
            ),
            "distance": {
                "none": means["none"][0],
                "separate": by_threshold(self.num_sigmas, means["separate"]),
                "intersection": by_threshold(self.num_sigmas, means["intersection"]),
            },
        }


def _dropped(kept: States) -> int:
    """Number of entries that boolean masks, one a stream, leave out."""
    return sum(int((~stream).sum()) for stream in streams(kept))


def _shapes(states: States) -> str:
    """The shape of each stream, for messages."""
    return " and ".join(str(tuple(stream.shape)) for stream in streams(states))
