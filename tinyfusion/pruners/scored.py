"""Pruners that give each block a score; a selector goes from scores to the blocks that stay.

Shape suffixes: B batch, N samples, K blocks that run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, Calibration, run_plain
from tinyfusion.errors import InputError
from tinyfusion.pruners.contract import Choice, PruningContext
from tinyfusion.pruners.selectors import Selection, Selector
from tinyfusion.states import States
from tinyfusion.units import BLOCKS, BRANCHES


class Scored(ABC):
    """Base class of the pruners that score blocks; a subclass says how, in `scores`.

    Args:
        selector: how to go from scores to blocks.
        num_samples: calibration samples, noised at times spread over the whole schedule.
        protect_last: never remove the last block.

    Attributes:
        criterion: what evidence calls the scores.

    Raises:
        InputError: no samples.
    """

    criterion: ClassVar[str] = "scores"
    kinds: ClassVar[tuple[str, ...]] = (BLOCKS, BRANCHES)

    def __init__(
        self, selector: Selector, num_samples: int = 1024, protect_last: bool = False
    ) -> None:
        if num_samples < 1:
            raise InputError(f"pruner.num_samples={num_samples} must be at least 1")
        self.selector, self.num_samples, self.protect_last = selector, num_samples, protect_last

    @property
    def uses_scheme(self) -> bool:
        """Whether blocks are chosen within the groups of a scheme."""
        return self.selector.uses_scheme

    @property
    def needs_scheme(self) -> bool:
        """Whether there must be one."""
        return getattr(self.selector, "needs_scheme", False)

    @property
    def unit_scores(self) -> tuple[str, ...]:
        """Names of the evidence that holds a number for each unit."""
        return (self.criterion,)

    @abstractmethod
    def scores(self, net: Backbone, calibration: Any, kept: Sequence[int]) -> Tensor:
        """Importance of blocks.

        Args:
            net: the whole model.
            calibration: what `calibration` made; the same for every call.
            kept: the blocks that run, ascending; others leave the states as they are.

        Returns:
            For each block of ``kept``, how much it matters in the model that runs only these:
            float64, shape (K,), higher for blocks that should stay. What is not a number counts
            as the highest.
        """

    def calibration(self, context: PruningContext) -> Any:
        """What blocks are scored on: by default a `HeldOutLoss` on training images."""
        return context.calibration(self.num_samples)

    def evidence(
        self, context: PruningContext, calibration: Any, selection: Selection
    ) -> dict[str, Any]:
        """What else to record of a finished selection, as plain data."""
        return {}

    def checked_scores(self, net: Backbone, calibration: Any, kept: Sequence[int]) -> Tensor:
        """What `scores` gives, for each block of ``kept`` a number.

        Raises:
            InputError: it gave another number of scores than it was asked for.
        """
        found_K = self.scores(net, calibration, kept).double().cpu()
        if found_K.shape != (len(kept),):
            raise InputError(
                f"{type(self).__name__}.scores gave shape {tuple(found_K.shape)} for "
                f"{len(kept)} units; valid: ({len(kept)},)"
            )
        # A model without the block broke down.
        return torch.where(found_K.isnan(), torch.inf, found_K)

    def choose(self, context: PruningContext) -> Choice:
        """Score blocks and select.

        Raises:
            InputError: ``keep`` is out of range, the selector can't keep to it, or `scores` gave
                another number of scores than it was asked for.
        """
        budget = context.budget
        assert budget is not None
        if self.protect_last:
            budget = replace(budget, protected=budget.protected | {budget.count - 1})
        calibration = self.calibration(context)
        net = context.as_blocks

        def score(kept: Sequence[int]) -> Tensor:
            return self.checked_scores(net, calibration, tuple(kept))

        selection = self.selector.select(score, budget)
        return context.choice(
            selection.kept,
            scheme=selection.scheme,
            scores={
                self.criterion: selection.scores.tolist(),
                "selector": self.selector.name,
                **selection.evidence,
                **self.evidence(context, calibration, selection),
            },
        )


def measured(
    net: Backbone,
    calibration: Calibration,
    kept: Sequence[int],
    measure: Callable[[States, States], Tensor],
) -> Tensor:
    """Compare input and output of every block that runs, sample by sample.

    Args:
        net: the whole model.
        calibration: inputs.
        kept: the blocks that run, ascending.
        measure: from states before and after a block to numbers of shape (B, ...).

    Returns:
        Shape (N, K, ...), float64, samples in the order of the calibration.
    """
    rows: dict[int, list[Tensor]] = {block: [] for block in kept}

    def runner(index: int, block: nn.Module, states: States, condition: Any) -> States:
        if index not in rows:
            return states
        out = run_plain(index, block, states, condition)
        rows[index].append(measure(states, out).double().cpu())
        return out

    with torch.no_grad():
        calibration.predict(net, runner)
    return torch.stack([torch.cat(found) for found in rows.values()], 1)
