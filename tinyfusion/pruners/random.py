"""Random choices: one, or the one of least, middle or largest loss among many (arXiv 2412.01199).

The paper draws 100,000 halves of DiT-XL/2 and recovers three of them (Figure 5, Table 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb, isfinite
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tinyfusion.budget import Budget
from tinyfusion.decision import Decision, check_kept
from tinyfusion.errors import InputError
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.metrics.prefix_tree import Kept, tree_nodes
from tinyfusion.pruners.candidate_list import LIST_FILE, SEGMENT, evaluate, read_losses
from tinyfusion.pruners.contract import Choice, PruningContext
from tinyfusion.ranks import is_first_rank
from tinyfusion.seeding import generator
from tinyfusion.units import BLOCKS, BRANCHES

PICKS = ("min", "median", "max")

SAME_LOSS = 1e-2
"""Largest relative difference between a loss of a finished list and the same one computed here.
Rounding differs between machines, and networks that were cut badly amplify it."""


class Random:
    """A random set of units that the budget allows, or one that is chosen from many such draws.

    With several candidates, their losses right after removal, all on one calibration batch, are
    written to ``prune/candidates.csv`` and drawn in ``prune/density.png``. Losses that are not
    finite stay in the list and are never chosen; the median is that of the finite ones.

    Args:
        draw_seed: seed of the draw; ``None`` takes the run's seed.
        candidates: sets drawn, all different; all that exist if there are fewer.
        choose: which of several is taken: that of least (``min``) or largest (``max``) loss, or
            number n // 2, counted from 0, of n in ascending order (``median``).
        num_samples: calibration samples.
        branches: candidates that are evaluated in one batch.
        marks: sets that are evaluated on the same batch and marked in the figure: blocks or the
            path of a ``decision.json``, by name.
        losses: path of the ``candidates.csv`` of an earlier run, to choose from without evaluating
            its candidates again.

    Raises:
        InputError: numbers out of range, or an unknown word for ``choose``.
    """

    uses_scheme = False
    kinds: ClassVar[tuple[str, ...]] = (BLOCKS, BRANCHES)
    unit_scores: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        draw_seed: int | None = None,
        candidates: int = 1,
        choose: str = "median",
        num_samples: int = 128,
        branches: int = 16,
        marks: Mapping[str, Sequence[int] | str] | None = None,
        losses: str | None = None,
    ) -> None:
        for name, value in (("candidates", candidates), ("branches", branches)):
            if value < 1:
                raise InputError(f"pruner.{name}={value} must be at least 1")
        if num_samples < 2:
            raise InputError(
                f"pruner.num_samples={num_samples} must be at least 2: losses are given with their "
                "standard error"
            )
        if not isinstance(marks, Mapping | None):
            raise InputError(
                f"pruner.marks={marks!r} must be a dictionary, such as "
                "'pruner.marks={mine:[0,2,4],learned:PATH/decision.json}'"
            )
        if choose not in PICKS:
            raise InputError(f"pruner.choose={choose!r} is not known; valid: {', '.join(PICKS)}")
        if candidates == 1 and (losses is not None or marks):
            key = "marks" if losses is None else "losses"
            raise InputError(
                f"pruner.{key} needs several candidates: give pruner.candidates=, "
                "such as 1000 (with losses as many as the list has)"
            )
        self.draw_seed, self.candidates, self.pick = draw_seed, candidates, choose
        self.num_samples, self.branches = num_samples, branches
        self.marks = dict(marks or {})
        self.losses = None if losses is None else Path(losses)

    def choose(self, context: PruningContext) -> Choice:
        """Draw the set, or draw many and choose one.

        Raises:
            InputError: ``keep``, a mark or a given list that does not fit the model, or no
                candidate of finite loss.
        """
        budget, depth = context.budget, len(context.units)
        assert budget is not None
        seed = context.seed if self.draw_seed is None else self.draw_seed
        if self.candidates == 1:
            order = torch.randperm(depth, generator=generator(seed, "random_pruner")).tolist()
            return context.choice(budget.fill(order), scores={"draw_seed": seed})
        marks = {name: _units_of_mark(name, value, context) for name, value in self.marks.items()}
        kept_sets = draw_sets(budget, self.candidates, seed)
        calibration = context.calibration(self.num_samples)
        scores = CandidateScores(context.as_blocks, calibration, self.branches)
        limit: dict[str, Any] = {budget.measure: budget.keep if budget.counts else budget.limit}
        limit |= {} if context.kind == BLOCKS else {"units": context.kind}
        head = {
            "format": "tinyfusion-candidates",
            "source_sha256": context.source_sha256,
            "depth": depth,
            **limit,
            "candidates": len(kept_sets),
            "draw_seed": seed,
            "seed": context.seed,
            "num_samples": self.num_samples,
        }
        if self.losses is None:
            losses, speed = evaluate(kept_sets, scores, head, context.folder)
        else:
            losses, speed = read_losses(self.losses, kept_sets, head), None
        picks = _picks(losses)
        if speed is None:
            path = self.losses or context.folder / LIST_FILE
            _check_reproduced(path, scores, kept_sets, losses, sorted(set(picks.values())))
        chosen = picks[self.pick]
        finite = np.sort([loss for loss in losses if isfinite(loss)])
        marked = {
            name: {"kept": list(kept), "loss": loss, "percentile": _percentile(finite, loss)}
            for (name, kept), (loss, _) in zip(
                marks.items(), scores.losses(list(marks.values())), strict=True
            )
        }
        if is_first_rank():
            title = f"{len(losses):,} random choices of {depth} {context.kind}, {budget}"
            if budget.counts:
                title = f"{len(losses):,} random choices of {budget.keep} of {depth} {context.kind}"
            _draw_density(losses, marked, context.folder / "density.png", title)
        evidence = {
            "draw_seed": seed,
            "candidates": len(losses),
            "not_finite": len(losses) - len(finite),
            "num_samples": self.num_samples,
            "choose": self.pick,
            "loss": losses[chosen],
            "rank": int(np.searchsorted(finite, losses[chosen])),
            **{f"loss_{name}": losses[number] for name, number in picks.items()},
            "loss_std": float(finite.std()),
            "block_evaluations": sum(
                tree_nodes(kept_sets[first : first + SEGMENT])
                for first in range(0, len(kept_sets), SEGMENT)
            ),
            "naive_block_evaluations": sum(map(len, kept_sets)),
            "candidates_per_s": speed,
            "marks": marked,
        }
        return context.choice(kept_sets[chosen], scores=evidence)


def draw_sets(budget: Budget, count: int, seed: int) -> list[Kept]:
    """Different sets that a budget allows, in ascending order.

    Of a number of units they are uniformly drawn; where units cost differently, or some must stay,
    a set is what fits of all units in a random order (`Budget.fill`).

    Args:
        budget: what may stay.
        count: how many sets; all that exist if there are no more, or as many as are found in 20
            times as many draws.
        seed: seed of the draws.
    """
    draws, depth = generator(seed, "random_pruner"), budget.count
    found: set[Kept] = set()
    if not budget.counts or budget.protected or budget.minimums:
        for _ in range(20 * count):
            found.add(budget.fill(torch.randperm(depth, generator=draws).tolist()))
            if len(found) == count:
                break
        return sorted(found)
    keep = budget.keep
    if comb(depth, keep) <= 4 * count:
        every = list(combinations(range(depth), keep))
        numbers = torch.randperm(len(every), generator=draws)[:count]
        return [every[number] for number in sorted(numbers.tolist())]
    while len(found) < count:
        keys = torch.rand(count - len(found), depth, dtype=torch.float64, generator=draws)
        # The places of the smallest of uniform draws are a uniform set.
        sets = keys.argsort(1)[:, :keep].sort(1).values
        found.update(map(tuple, sets.tolist()))
    return sorted(found)


def _picks(losses: Sequence[float]) -> dict[str, int]:
    """Numbers of the candidates of least, middle and largest finite loss."""
    order = sorted((n for n, loss in enumerate(losses) if isfinite(loss)), key=losses.__getitem__)
    if not order:
        raise InputError(
            f"none of {len(losses):,} candidates has a finite loss, so that none can be chosen; "
            "keep more blocks"
        )
    return dict(zip(PICKS, (order[0], order[len(order) // 2], order[-1]), strict=True))


def _units_of_mark(name: str, value: Any, context: PruningContext) -> Kept:
    """Units that a mark keeps."""
    units, depth = context.units, context.net.depth
    if not isinstance(value, str):
        if not isinstance(value, Sequence):
            raise InputError(
                f"pruner.marks.{name}={value!r} must be a list of {context.kind}, such as [0,1], "
                "or the path of a decision.json"
            )
        return check_kept(value, len(units), key=f"pruner.marks.{name}")
    decision = Decision.load(value)
    if decision.kept is None and not decision.removed:
        raise InputError(f"pruner.marks.{name}={value} does not choose among blocks")
    if decision.source_depth != depth:
        raise InputError(
            f"pruner.marks.{name}={value} chooses among {decision.source_depth} blocks, but the "
            f"model has {depth}"
        )
    if decision.removed and context.kind == BLOCKS:
        raise InputError(
            f"pruner.marks.{name}={value} removes branches of blocks: give units=branches"
        )
    return decision.kept_units(units)


def _check_reproduced(
    path: Path,
    scores: CandidateScores,
    kept_sets: Sequence[Kept],
    losses: Sequence[float],
    some: list[int],
) -> None:
    """Refuse losses that are not those of this model, data and process."""
    found = scores.losses([kept_sets[number] for number in some])
    for number, (loss, _) in zip(some, found, strict=True):
        if not abs(loss - losses[number]) <= SAME_LOSS * abs(loss):
            raise InputError(
                f"candidates file {str(path)!r} is not of this model, data and process: keeping "
                f"{list(kept_sets[number])} has loss {losses[number]:.6g} there and {loss:.6g} here"
            )


def _percentile(ascending: NDArray[np.float64], loss: float) -> float | None:
    """Share of the candidates that have a smaller loss, in percent."""
    if not isfinite(loss):
        return None
    return 100 * int(np.searchsorted(ascending, loss)) / len(ascending)


def _draw_density(
    losses: Sequence[float], marked: Mapping[str, Any], path: Path, title: str
) -> None:
    from tinyfusion.figures.density import loss_density

    loss_density(losses, path, {name: mark["loss"] for name, mark in marked.items()}, title)
