"""A model of what a step costs in seconds and bytes, fitted to measured sizes.

Both are sums of terms that are known from the size of network and batch, with coefficients that
can't be negative: seconds are operations over a rate, or a fixed effort per block or step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from tinyfusion.errors import InputError
from tinyfusion.studies.growth import Point, Size

FLOAT = 4
"""Bytes of a number in float32."""

Term = Callable[[Point], float]


def attention_macs(size: Size) -> int:
    """Multiply-accumulates of scores and mixing in all blocks, for one sample: 2 T^2 D a block."""
    return size.depth * 2 * size.tokens**2 * size.width


def states(size: Size) -> int:
    """Numbers in the hidden states after all blocks, for the batch: L B T D."""
    return size.depth * size.batch * size.tokens * size.width


SECONDS: dict[str, Term] = {
    "matrix products with weights": lambda p: (
        p.size.batch * (p.macs - attention_macs(p.size)) / 1e9
    ),
    "attention among tokens": lambda p: p.size.batch * attention_macs(p.size) / 1e9,
    "element-wise work on states": lambda p: states(p.size) / 1e9,
    "weights read and updated": lambda p: p.parameters / 1e9,
    "each block": lambda p: p.size.depth,
    "each step": lambda p: 1.0,
}
"""Terms of the seconds of a step: 1e9 MACs or numbers, blocks, steps."""

BYTES: dict[str, Term] = {
    "states within blocks": lambda p: FLOAT * states(p.size),
    "states outside blocks": lambda p: FLOAT * states(p.size) / p.size.depth,
    "conditions within blocks": lambda p: FLOAT * p.size.depth * p.size.batch * p.size.width,
    "weights' gradients": lambda p: FLOAT * p.parameters,
    "each step": lambda p: 1e6,
}
"""Terms of the bytes that a step adds to what stays between steps: float32 numbers, megabytes."""


@dataclass(frozen=True)
class Fit:
    """A fitted model of one kind of work.

    Attributes:
        terms: its terms by name.
        coefficients: what each is multiplied by, by name; not negative.
        offset: what is known of a point beforehand and is not fitted.
    """

    terms: Mapping[str, Term]
    coefficients: Mapping[str, float]
    offset: Term

    def __call__(self, point: Point) -> float:
        """What the model says of a point, whose measured values are not looked at."""
        fitted = sum(self.coefficients[name] * term(point) for name, term in self.terms.items())
        return self.offset(point) + fitted

    def errors(self, points: Sequence[Point], value: Term) -> list[float]:
        """Relative errors, not signed, at some points."""
        return [abs(self(point) / value(point) - 1) for point in points]


def fit(points: Sequence[Point], terms: Mapping[str, Term], value: Term, offset: Term) -> Fit:
    """The coefficients, none negative, whose relative errors have the least sum of squares.

    Args:
        points: of one kind of work.
        terms: terms of the model.
        value: what was measured of a point, positive.
        offset: what is known of it beforehand.

    Raises:
        InputError: fewer points than terms.
    """
    from scipy.optimize import nnls  # slow to import

    if len(points) < len(terms):
        raise InputError(
            f"{len(points)} point(s) can't tell {len(terms)} terms apart; measure more"
        )
    values_N = np.array([value(point) for point in points])
    terms_NK = np.array([[term(point) for term in terms.values()] for point in points])
    terms_NK /= values_N[:, None]
    # Terms differ by orders of magnitude, which the solver would take for tolerances.
    scales_K = np.linalg.norm(terms_NK, axis=0)
    rest_N = 1 - np.array([offset(point) for point in points]) / values_N
    found_K, _ = nnls(terms_NK / scales_K, rest_N)
    return Fit(terms, dict(zip(terms, (found_K / scales_K).tolist(), strict=True)), offset)


def fit_seconds(points: Sequence[Point]) -> Fit:
    """The model of seconds, see `SECONDS`."""
    return fit(points, SECONDS, lambda p: p.seconds, lambda p: 0.0)


def fit_peak(points: Sequence[Point]) -> Fit:
    """The model of the most bytes at once, see `BYTES`; what stays between steps is known."""
    return fit(points, BYTES, lambda p: p.peak, lambda p: p.state)


def median_and_most(errors: Sequence[float]) -> tuple[float, float]:
    """Median and largest of some errors."""
    return median(errors), max(errors)
