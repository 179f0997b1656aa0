"""ZD: keep the units with the fewest weights far above their mean (arXiv 2406.17415)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from tinyfusion.pruners.of_weights import OfWeights
from tinyfusion.pruners.selectors import Selector


def share_of_large(weights: Tensor, two_sided: bool = False) -> float:
    """Share of numbers more than one standard deviation above their mean.

    Args:
        weights: numbers of any shape.
        two_sided: count those as far below it, too.

    Returns:
        0.1587 for normal numbers, 0.3173 on two sides; less with far outliers; 0 for equal ones.
    """
    above = weights - weights.mean()
    far = (above.abs() if two_sided else above) > weights.std(correction=0)
    return float(far.double().mean())


class ZD(OfWeights):
    """Removal of the units with the largest share of weights far above the mean.

    Mean and deviation are over all weight matrices of a unit together. "Much larger than average"
    leaves open whether absolute values are meant: one side is our reading.

    Args:
        selector: how to go from scores to units.
        protect_last: never remove the last unit.
        two_sided: count weights as far below the mean, too.
    """

    name: ClassVar[str] = "zd"
    criterion: ClassVar[str] = "negative_zd"

    def __init__(
        self, selector: Selector, protect_last: bool = False, two_sided: bool = False
    ) -> None:
        super().__init__(selector, protect_last)
        self.two_sided = two_sided

    def score(self, matrices: Sequence[Tensor]) -> float:
        """``-ZD``: a smaller share means more important."""
        return -share_of_large(torch.cat([m.flatten() for m in matrices]), self.two_sided)
