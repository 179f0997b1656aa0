"""Features of images that several ranks look at: in the order of the images, on the first rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from tinyfusion.group import ALONE, Group


class CollectedFeatures(Metric):
    """Features by the number of their image; which rank looked at which image does not matter.

    Args:
        layers: names of the layers.
        group: the ranks that share the images.
    """

    full_state_update = False
    numbers: list[Tensor]

    def __init__(self, layers: Sequence[str], group: Group = ALONE) -> None:
        super().__init__(
            dist_sync_fn=lambda rows, **_: _gathered(rows, group),
            distributed_available_fn=lambda: group.size > 1,
            compute_with_cache=False,
        )
        self._layers = list(layers)
        self.add_state("numbers", [], dist_reduce_fx="cat")
        for layer in self._layers:
            self.add_state(f"features_{layer}", [], dist_reduce_fx="cat")

    def update(self, first: int, features: Mapping[str, Tensor]) -> None:
        """Take the features of consecutive images.

        Args:
            first: number of the first one.
            features: by layer, each of shape (B, D).
        """
        count = len(features[self._layers[0]])
        self.numbers.append(torch.arange(first, first + count))
        for layer in self._layers:
            getattr(self, f"features_{layer}").append(features[layer].cpu())

    def compute(self) -> dict[str, Tensor]:
        """Features by layer, each of shape (N, D), on the CPU.

        On the first rank of all images in their order, on the others of those they looked at.
        """
        order = dim_zero_cat(self.numbers).long().argsort()
        return {
            layer: dim_zero_cat(getattr(self, f"features_{layer}"))[order] for layer in self._layers
        }


def _gathered(rows: Tensor, group: Group) -> list[Tensor]:
    """What the ranks hold of a state, without ranks that had no image."""
    found = group.gather_rows(rows)
    return [part for part in found if len(part)] or found
