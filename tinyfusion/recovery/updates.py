"""How large the updates of each block are in recovery: important blocks are changed less."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.units import BLOCKS


class InverseImportance:
    """Divide each block's learning rate by its importance, as the pruner has scored it.

    ``rate_i = rate * min(1, max(least, I_0 / I_i))`` with the least positive importance ``I_0``
    of the blocks that stay: that block is trained at the configured rate, no other one faster.
    Blocks whose removal costs nothing (``I_i <= 0``) have the whole rate, too, as has everything
    outside the blocks.

    Source: HierarchicalPrune (arXiv 2508.04663) scales updates by the inverse of the cost of
    ablating the block and freezes early blocks. Normalisation and bound are ours.

    Args:
        scores: which evidence of the decision to take, such as ``loss_change``; ``None`` takes the
            only one with a number for each block.
        least: least share of the rate, 0 to 1.
        frozen: blocks at the start of the student that are not trained at all.

    Raises:
        InputError: a value out of range.
    """

    def __init__(self, scores: str | None = None, least: float = 0.1, frozen: int = 0) -> None:
        if not 0 <= least <= 1:
            raise InputError(f"recovery.updates.least={least} must be from 0 to 1")
        if frozen < 0:
            raise InputError(f"recovery.updates.frozen={frozen} must be at least 0")
        self.scores, self.least, self.frozen = scores, least, frozen

    def factors(self, decision: Decision | None) -> list[float]:
        """Share of the learning rate for each block of the model that the decision is about.

        Args:
            decision: how the student is cut, with the scores of its pruner.

        Raises:
            InputError: no decision, or one that holds no such scores of blocks, or none that is
                positive.
        """
        key, scores = self._found(decision)
        assert decision is not None and decision.kept is not None
        if any(math.isnan(score) for score in scores):
            raise InputError(f"updates=inverse_importance: {key} of the decision holds no numbers")
        stay = decision.origins
        if self.frozen >= len(stay):
            raise InputError(
                f"recovery.updates.frozen={self.frozen} leaves none of the {len(stay)} blocks to "
                f"train; valid: at most {len(stay) - 1}"
            )
        positive = [scores[i] for i in stay if 0 < scores[i] < math.inf]
        if not positive:
            raise InputError(
                f"updates=inverse_importance: no block that stays has a positive {key}, so that "
                "all would have one rate; choose a pruner with such scores, as sensitivity"
            )
        factors = [1.0 if x <= 0 else self._share(min(positive) / x) for x in scores]
        for block in stay[: self.frozen]:
            factors[block] = 0.0
        return factors

    def _share(self, share: float) -> float:
        return min(1.0, max(self.least, share))

    def _found(self, decision: Decision | None) -> tuple[str, list[float]]:
        """Name and values of the evidence to take, one for each block."""
        if decision is None:
            raise InputError(
                "updates=inverse_importance takes the scores of a decision: give decision=PATH, "
                "or updates=none"
            )
        if decision.kept is None or decision.budget.get("units", BLOCKS) != BLOCKS:
            raise InputError(
                "updates=inverse_importance needs scores of blocks, but the decision of "
                f"{decision.method!r} is about other units; give updates=none"
            )
        held = {
            key: values
            for key, value in decision.scores.items()
            if (values := _numbers(value, decision.source_depth)) is not None
        }
        if self.scores is not None:
            if self.scores not in held:
                raise InputError(
                    f"recovery.updates.scores={self.scores}: the decision of {decision.method!r} "
                    f"holds no such scores of blocks; it holds {_listed(held)}"
                )
            return self.scores, held[self.scores]
        if len(held) != 1:
            raise InputError(
                f"updates=inverse_importance: the decision of {decision.method!r} holds "
                f"{_listed(held)} as scores of its blocks; "
                + (
                    "give one of them as recovery.updates.scores="
                    if held
                    else "choose a pruner that scores blocks, such as sensitivity, or updates=none"
                )
            )
        return next(iter(held.items()))


def _numbers(value: Any, count: int | None) -> list[float] | None:
    """The values of a list, or of a table by the units' names, if they are so many numbers."""
    values = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(values, list) or len(values) != count:
        return None
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        return None
    return [float(v) for v in values]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
