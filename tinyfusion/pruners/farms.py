"""FARMS: keep the units whose weights have the heaviest-tailed spectra (arXiv 2506.06280).

Shape suffixes: W windows, N rows of a window, K columns of a window, V values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor

from tinyfusion.errors import InputError
from tinyfusion.pruners.of_weights import OfWeights
from tinyfusion.pruners.selectors import Selector

ASPECT = 2
"""Columns of a window over its rows, as released."""


def hill_exponent(values_V: Tensor) -> float:
    """Exponent of a power law, estimated from the upper half of positive numbers.

    ``alpha = 1 + m / sum_{j >= i} ln(x_j / x_i)`` over ascending numbers, ``x_i`` their median and
    ``m`` how many there are from it on (Hill's estimator).

    Args:
        values_V: numbers; those that are not positive are left out.

    Returns:
        The exponent of the density; infinite for equal numbers, not a number for none.
    """
    ascending = values_V[values_V > 0].sort().values
    tail = ascending[len(ascending) // 2 :]
    if not len(tail):
        return float("nan")
    return (1 + len(tail) / (tail / tail[0]).log().sum()).item()


def windows(matrix: Tensor, rows: int, grid: int) -> Tensor:
    """Parts of one shape, spread evenly over a matrix; those of small matrices are smaller.

    Args:
        matrix: shape (out, in); windows are wide along its longer side.
        rows: rows of a window, which has `ASPECT` times as many columns; fewer where the matrix has
            no room for one.
        grid: windows along each side, at most; fewer where they would overlap for the most part.

    Returns:
        Shape (W, N, K), with ``K = ASPECT * N``; none of a matrix too small for any.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    rows = min(rows, wide.shape[0], wide.shape[1] // ASPECT)
    columns = ASPECT * rows
    if not rows:
        return matrix.new_empty(0, 0, 0)
    return torch.stack(
        [
            wide[top : top + rows, left : left + columns]
            for top in _starts(wide.shape[0], rows, grid)
            for left in _starts(wide.shape[1], columns, grid)
        ]
    )


def _starts(length: int, size: int, grid: int) -> list[int]:
    count = min(grid, -(-length // size))
    return [place * (length - size) // max(1, count - 1) for place in range(count)]


def spectral_exponent(matrix: Tensor, rows: int = 64, grid: int = 8) -> float:
    """Exponent of the spectrum of a weight matrix, whatever its aspect ratio.

    The spectrum is that of all windows together: their squared singular values.

    Args:
        matrix: shape (out, in).
        rows: see `windows`.
        grid: see `windows`.

    Returns:
        See `hill_exponent`; not a number for a matrix of zeros, and for one with less than two
        columns.
    """
    parts_WNK = windows(matrix, rows, grid)
    if not parts_WNK.numel():
        return float("nan")
    squares = torch.linalg.svdvals(parts_WNK).square().flatten()
    # What is zero but for rounding is no part of the tail.
    eps = torch.finfo(squares.dtype).eps
    return hill_exponent(squares[squares > squares.max() * eps])


class FARMS(OfWeights):
    """Removal of the units of the lightest-tailed spectra, which count as the least trained.

    Of a unit the mean exponent of its weight matrices is taken, without those of zeros. Windows of
    one aspect ratio make matrices of different ones comparable.

    Args:
        selector: how to go from scores to units.
        protect_last: never remove the last unit.
        rows: rows of a window; it has twice as many columns.
        grid: windows along each side of a matrix, at most.

    Raises:
        InputError: fewer than 2 rows, or no windows.
    """

    name: ClassVar[str] = "farms"
    criterion: ClassVar[str] = "negative_alpha"

    def __init__(
        self, selector: Selector, protect_last: bool = False, rows: int = 64, grid: int = 8
    ) -> None:
        super().__init__(selector, protect_last)
        if rows < 2:
            raise InputError(f"pruner.rows={rows} must be at least 2")
        if grid < 1:
            raise InputError(f"pruner.grid={grid} must be at least 1")
        self.rows, self.grid = rows, grid

    def score(self, matrices: Sequence[Tensor]) -> float:
        """Less the mean exponent: heavier tails count as more important.

        A unit all of whose matrices are zero has the lowest score.
        """
        found = [spectral_exponent(matrix, self.rows, self.grid) for matrix in matrices]
        known = [alpha for alpha in found if not math.isnan(alpha)]
        return -fmean(known) if known else float("-inf")
