"""Pruners that score units by their weights alone, without data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.errors import InputError
from tinyfusion.pruners.contract import PruningContext
from tinyfusion.pruners.scored import Scored
from tinyfusion.pruners.selectors import Selector


class OfWeights(Scored):
    """Base class of criteria that see nothing but the weight matrices of a unit.

    Biases and norms are left out. A unit's score does not depend on which others run, so that
    ``selector=greedy`` chooses as ``top_k`` does.

    Args:
        selector: how to go from scores to units.
        protect_last: never remove the last unit.
    """

    def __init__(self, selector: Selector, protect_last: bool = False) -> None:
        super().__init__(selector, protect_last=protect_last)

    @abstractmethod
    def score(self, matrices: Sequence[Tensor]) -> float:
        """Importance of a unit, higher for units that should stay.

        Args:
            matrices: its weights, float64, each of shape (out, in): at least one.
        """

    def calibration(self, context: PruningContext) -> dict[int, float]:
        """Scores that are known; `scores` adds to them."""
        return {}

    def scores(self, net: Backbone, calibration: Any, kept: Sequence[int]) -> Tensor:
        """See `Scored`.

        Raises:
            InputError: a unit without weight matrices.
        """
        units = net.units()
        for number in kept:
            if number not in calibration:
                owned = net.own_parameters(units[number])
                matrices = [
                    own.values.double().flatten(1)
                    for own in owned.values()
                    if own.parameter.ndim > 1
                ]
                if not matrices:
                    raise InputError(
                        f"pruner={type(self).__name__} looks at weight matrices, but "
                        f"{units[number].name} has none; choose a pruner that looks at states or "
                        "losses, such as shortgpt"
                    )
                calibration[number] = self.score(matrices)
        return torch.tensor([calibration[number] for number in kept], dtype=torch.float64)
