"""Loss of many choices of blocks on one fixed batch: what neighbours share is computed once.

Two choices that keep the same first blocks have the same hidden states behind those. Choices in
ascending order are the leaves of a tree whose nodes are such beginnings ("prefixes"); a walk over
that tree runs one block per node instead of one per choice and kept block.

Shape suffixes: B batch, N samples of the fixed batch, K candidates.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import (
    Backbone,
    dtype_of,
    evaluating,
    predict,
    running_only,
)
from tinyfusion.conditioning import Conditioning
from tinyfusion.errors import InputError
from tinyfusion.metrics.held_out import HeldOutLoss, standard_error
from tinyfusion.metrics.memory import available_memory
from tinyfusion.metrics.prefix_tree import Kept, TreePlan, Walk, common_start
from tinyfusion.metrics.rows import copies_of, first_rows, map_rows
from tinyfusion.states import States, streams
from tinyfusion.text import readable_bytes

log = logging.getLogger(__name__)

CALL = {"cuda": (1024, 1 << 24), "cpu": (256, 1 << 20)}
"""By device: samples per call of a block, and numbers in their hidden states, at most."""

WITHIN = 16
"""Hidden states that a block makes within itself, about: q, k, v, the MLP's four, copies."""


class CandidateScores:
    """Scores ways of pruning one network, each as if only its blocks were run.

    A step takes the next ``branches`` candidates. The network's forward runs once on that many
    copies of the batch, and its block runner replaces the walk through the blocks: every node of
    the tree that is new to the step runs once, together with the other new nodes of its block.
    Nodes that the following step begins with are kept, so that neighbours in an ascending list
    cost exactly the nodes of their tree, whatever ``branches`` is. Memory: hidden states of
    ``branches`` candidates and of at most ``depth`` nodes, for ``rows`` samples each.

    Args:
        net: the network; left as it is.
        calibration: the fixed batch.
        branches: candidates per step, at least 1.
        rows: samples per call of a block, at most; a larger batch is taken piece by piece. Few
            enough that hidden states stay in a processor's cache, many enough to occupy a GPU.
            Default: by device and size of the hidden states (`CALL`), and so few that a step takes
            at most half of the memory that is free; the log says how many. (Sums of other batches
            differ in their last places.)

    Attributes:
        block_evaluations: blocks run so far, each on the whole batch; scoring candidates one by
            one takes as many as they keep.

    Raises:
        InputError: ``branches`` is below 1, or the network can't be told the conditioning.
    """

    def __init__(
        self, net: Backbone, calibration: HeldOutLoss, branches: int = 16, rows: int | None = None
    ) -> None:
        if branches < 1:
            raise InputError(f"branches={branches} must be at least 1")
        calibration.conditioning.check(net)
        self.net = net
        self.calibration = calibration
        self.branches = branches
        self.block_evaluations = 0
        self._device = next(net.parameters()).device
        self._rows = rows or self._default_rows()
        self._pieces = [piece for part in calibration.parts for piece in self._cut(*part)]
        self._compared = False

    def _default_rows(self) -> int:
        """See ``rows``; the hidden states of one sample are looked at, no block is run."""
        rows, numbers = CALL.get(self._device.type, CALL["cpu"])
        ((_, corrupted), *_), sizes = self.calibration.parts, [1]

        def look(index: int, block: nn.Module, states: States, condition: Any) -> States:
            sizes.append(sum(stream.numel() for stream in streams(states)))
            return states

        one = slice(0, 1)
        inputs = [value[one].to(self._device) for value in corrupted.inputs]
        conditioning = self.calibration.conditioning[one].to(self._device)
        with torch.no_grad(), evaluating(self.net):
            predict(self.net, inputs, conditioning, look)
        rows = max(1, min(rows, numbers // max(sizes)))
        free = available_memory(self._device)
        if free is not None:
            held = self.branches + self.net.depth + WITHIN
            rows = max(1, min(rows, free // (2 * held * max(sizes) * dtype_of(self.net).itemsize)))
        log.info(
            "candidates: %d sample(s) per call of a block%s",
            rows,
            "" if free is None else f", with {readable_bytes(free)} of memory free",
        )
        return rows

    def _cut(self, rows: slice, corrupted: Any) -> Iterator[_Piece]:
        """A part of the fixed batch in about equal pieces of at most ``rows`` samples."""
        count, conditioning = rows.stop - rows.start, self.calibration.conditioning[rows]
        size = -(-count // -(-count // self._rows))
        for first in range(0, count, size):
            some = slice(first, min(first + size, count))
            batch = map_rows(corrupted, count, itemgetter(some))
            own = conditioning[some].to(self._device)
            yield _Piece(
                slice(rows.start + some.start, rows.start + some.stop),
                map_rows(
                    batch,
                    some.stop - some.start,
                    lambda value: copies_of(value.to(self._device), self.branches),
                ),
                own.cat([own] * self.branches),
            )

    def losses(self, kept_sets: Sequence[Sequence[int]]) -> Iterator[tuple[float, float]]:
        """Loss of the task and its standard error for each candidate, as `HeldOutLoss.of` does.

        Args:
            kept_sets: blocks that each candidate keeps, ascending; ascending neighbours share
                most, any order is right.

        Yields:
            Mean and standard error over the fixed batch, in the order given; after the last
            candidate if the batch is taken in several pieces.

        Raises:
            InputError: the network's forward does not walk its blocks as `Backbone` says.
        """
        loss = self.calibration.process.loss
        yield from self._scores(kept_sets, lambda out, piece, batch: loss(out, batch)["loss"])

    def distances(
        self,
        kept_sets: Sequence[Sequence[int]],
        wanted: Tensor,
        weights_N: Tensor | None = None,
    ) -> Iterator[float]:
        """Distance of each candidate's output to another, as `HeldOutLoss.distance` does.

        Args:
            kept_sets: see `losses`.
            wanted: what `HeldOutLoss.predict` gave for the network to compare with.
            weights_N: how much each sample counts, shape (N,), with mean 1; default: all alike.

        Yields:
            Mean ``kd`` without variances, in the order given.

        Raises:
            InputError: see `losses`.
        """
        process = self.calibration.process

        def distance(out: Tensor, piece: _Piece, batch: Any) -> Tensor:
            target = wanted[piece.rows].to(out.device)
            target = copies_of(target, len(out) // len(target))
            kd = process.distillation_loss(out, target, batch, variance=False)["kd"]
            if weights_N is None:
                return kd
            weights = weights_N[piece.rows].to(kd)
            return kd * copies_of(weights, len(kd) // len(weights))

        for mean, _ in self._scores(kept_sets, distance):
            yield mean

    def _scores(
        self,
        kept_sets: Sequence[Sequence[int]],
        score: Callable[[Tensor, _Piece, Any], Tensor],
    ) -> Iterator[tuple[float, float]]:
        """Mean and standard error of a figure per sample, for each candidate."""
        plans = self._plans([tuple(kept) for kept in kept_sets])
        # Of several pieces, one goes through all steps before the next does: only its states are
        # kept from step to step.
        groups = ([plan] for plan in plans) if len(self._pieces) == 1 else iter([list(plans)])
        carried: list[dict[Kept, States]] = [{} for _ in self._pieces]
        for group in filter(None, groups):
            with torch.no_grad(), evaluating(self.net):
                pieces = [
                    torch.cat([self._step(plan, piece, states, score) for plan in group])
                    for piece, states in zip(self._pieces, carried, strict=True)
                ]
            self.block_evaluations += sum(plan.new_nodes for plan in group)
            scores_KN = torch.cat(pieces, dim=1)
            means, errors = scores_KN.mean(1), standard_error(scores_KN)
            yield from zip(means.tolist(), errors.tolist(), strict=True)

    def _plans(self, kept_sets: Sequence[Kept]) -> Iterator[TreePlan]:
        """What each step runs."""
        known: set[Kept] = set()
        for first in range(0, len(kept_sets), self.branches):
            last = first + self.branches
            step, following = kept_sets[first:last], kept_sets[last : last + self.branches]
            plan = TreePlan(self.net, step, known, common_start(step[-1], following))
            yield plan
            known = plan.carried

    def _step(
        self,
        plan: TreePlan,
        piece: _Piece,
        carried: dict[Kept, States],
        score: Callable[[Tensor, _Piece, Any], Tensor],
    ) -> Tensor:
        """Scores of one step on one piece, shape (K, B); alters what is ``carried``."""
        count, size = len(plan.kept_sets), piece.size
        batch, conditioning = piece.copies(count, self.branches)
        walk = Walk(plan, size, self._rows, carried, self.net.condition_rows)
        out = predict(self.net, batch.inputs, conditioning, walk).float()
        if not self._compared:
            self._compare(plan.kept_sets[0], piece, out[:size])
        return score(out, piece, batch).view(count, size)

    def _compare(self, kept: Kept, piece: _Piece, out: Tensor) -> None:
        """Refuse a network that gives something else when its blocks run one by one."""
        batch, conditioning = piece.copies(1, self.branches)
        plain = predict(self.net, batch.inputs, conditioning, running_only(kept)).float()
        if not plain.isfinite().all():
            return  # Nothing to compare with: the next step is compared instead.
        self._compared = True
        # Batches of other sizes are summed in another order.
        exact = self._device.type != "cuda" or torch.get_float32_matmul_precision() == "highest"
        eps = max(torch.finfo(dtype_of(self.net)).eps, 0.0 if exact else 2.0**-10)
        if not (out - plain).norm() <= eps**0.5 * plain.norm():
            raise InputError(
                f"{type(self.net).__name__}: its forward does something between blocks that is "
                "lost when hidden states are shared; declare the first block behind it in borders"
            )


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Some samples of the fixed batch on the network's device, as many copies as branches.

    Attributes:
        rows: which samples of the fixed batch.
        corrupted: the process's batch of them.
        conditioning: their conditioning.
    """

    rows: slice
    corrupted: Any
    conditioning: Conditioning

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.rows.stop - self.rows.start

    def copies(self, count: int, held: int) -> tuple[Any, Conditioning]:
        """The first ``count`` of the ``held`` copies: batch and conditioning."""
        batch = first_rows(self.corrupted, held * self.size, count * self.size)
        return batch, self.conditioning[: count * self.size]
