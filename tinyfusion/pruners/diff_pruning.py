"""Diff-Pruning: cut widths by Taylor importance along the trajectory (arXiv 2305.10924).

The library Torch-Pruning finds the coupled channels (`tinyfusion.backbones.coupling`) and scores
them (its `GroupTaylorImportance`) by gradients that are summed over the times.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, evaluating, predict
from tinyfusion.backbones.coupling import coupled_groups, coupling, cut_tensors
from tinyfusion.changes import Resizing
from tinyfusion.conditioning import Conditioning
from tinyfusion.errors import InputError
from tinyfusion.processes.contract import Process
from tinyfusion.pruners.contract import Choice, PruningContext
from tinyfusion.pruners.width_search import widths_for
from tinyfusion.seeding import FixedDraws
from tinyfusion.units import CHANNELS

log = logging.getLogger(__name__)

TIMES = 1000
"""Times between clean data and noise for a process that has no steps."""

SECONDS_PER_LINE = 30
"""Time between two log lines while gradients are summed."""


class DiffPruning:
    """Keep the most important channels, heads and neurons; every block gets the same widths.

    Args:
        ratio: share of the parameters that goes, in [0, 1).
        num_samples: images of the one calibration batch.
        threshold: stop at the first time whose loss is below this share of the largest so far.
        stride: steps from one time to the next, beginning at clean data.
        round_to: what channels and neurons are a multiple of; at least 4, which position tables
            need.
        micro_batch: most images in one forward; ``None``: all.

    Raises:
        InputError: a value out of range.
    """

    name = "diff_pruning"
    uses_scheme = False
    uses_keep = False
    cuts_width = True

    def __init__(
        self,
        ratio: float = 0.5,
        num_samples: int = 128,
        threshold: float = 0.05,
        stride: int = 1,
        round_to: int = 8,
        micro_batch: int | None = None,
    ) -> None:
        if not 0 <= ratio < 1:
            raise InputError(f"pruner.ratio={ratio} must be at least 0 and below 1")
        if not 0 <= threshold < 1:
            raise InputError(f"pruner.threshold={threshold} must be at least 0 and below 1")
        if stride < 1:
            raise InputError(f"pruner.stride={stride} must be at least 1")
        if round_to < 4 or round_to % 4:
            raise InputError(f"pruner.round_to={round_to} must be a multiple of 4")
        if micro_batch is not None and micro_batch < 1:
            raise InputError(f"pruner.micro_batch={micro_batch} must be at least 1, or null")
        self.ratio, self.num_samples, self.threshold = ratio, num_samples, threshold
        self.stride, self.round_to, self.micro_batch = stride, round_to, micro_batch

    def plan(self, net: Backbone) -> Choice:
        """The widths as a choice; see `resizing`."""
        return Choice(None, resized=self.resizing(net), budget={"ratio": self.ratio})

    def resizing(self, net: Backbone) -> Resizing:
        """The widths that a network of these sizes is cut to; which channels stay is open.

        Args:
            net: the network, on any device; its weights are not looked at.

        Returns:
            A record that keeps the first channels of every group.

        Raises:
            InputError: the network's class has no width plan, or no widths reach the ratio.
        """
        found = coupling(net)
        widths = widths_for(found, self.ratio, self.round_to)
        arguments = {group.name: group.argument for group in found.plan.groups}
        groups = net.units(CHANNELS)
        return Resizing(
            kept={unit.name: tuple(range(widths[arguments[unit.name]])) for unit in groups},
            source_sizes={unit.name: unit.size for unit in groups},
            widths=widths,
            source_widths=dict(found.widths),
            parameters=int(found.count(widths)),
            source_parameters=int(found.count(found.widths)),
        )

    def choose(self, context: PruningContext) -> Choice:
        """Accumulate gradients over the times, score all groups, keep the best of each."""
        net = context.net
        planned = self.resizing(net)
        images, conditioning = context.calibration_images(self.num_samples)
        trajectory = accumulate_gradients(
            net,
            context.process,
            images,
            conditioning,
            FixedDraws(len(images), context.seed, self.name),
            self.threshold,
            self.stride,
            self.micro_batch,
        )
        importance = group_importance(net)
        kept, shares = {}, {}
        for name, members in planned.kept.items():
            scores_U = importance[name]
            order = scores_U.argsort(descending=True, stable=True)[: len(members)]
            kept[name] = tuple(order.sort().values.tolist())
            total = float(scores_U.sum())
            shares[name] = float(scores_U[order].sum()) / total if total > 0 else 1.0
        scores = {
            "times": trajectory.times,
            "losses": trajectory.losses,
            "stopped_at": trajectory.stopped_at,
            "importance_kept": shares,
        }
        resized = replace(planned, kept=kept)
        return Choice(None, scores=scores, resized=resized, budget={"ratio": self.ratio})


@dataclass(frozen=True)
class Trajectory:
    """Losses along the times.

    Attributes:
        times: what was drawn for the time, in [0, 1), one per loss.
        losses: mean ``mse`` of the calibration batch at each.
        stopped_at: number of the time whose loss was below the threshold, and whose gradients
            were left out; ``None`` if none was.
    """

    times: list[float]
    losses: list[float]
    stopped_at: int | None


def accumulate_gradients(
    net: Backbone,
    process: Process,
    images: Tensor,
    conditioning: Conditioning,
    draws: FixedDraws,
    threshold: float,
    stride: int = 1,
    micro_batch: int | None = None,
) -> Trajectory:
    """Sum the gradients of the loss over the informative times into ``grad`` of the parameters.

    Source: Diff-Pruning, section 3.3: times go from clean data to noise with one fixed noise, and
    end at the first whose loss is below ``threshold`` times the largest so far.

    Args:
        net: the network, in evaluation mode while this runs; gradients it had are dropped.
        process: gives the noised inputs and the loss, whose term ``mse`` is used.
        images: one batch, shape (N, C, H, W).
        conditioning: of the N images.
        draws: everything random but the time; the same at every time, however the batch is split.
        threshold: share of the largest loss.
        stride: steps from one time to the next.
        micro_batch: images at a time.

    Raises:
        InputError: a stride as long as the process, or a loss that is not finite.
    """
    device = next(net.parameters()).device
    steps = getattr(process, "num_steps", TIMES)
    if stride >= steps:
        raise InputError(f"pruner.stride={stride} must be less than the process's {steps} steps")
    size = micro_batch or len(images)
    parts = [slice(first, first + size) for first in range(0, len(images), size)]
    trained = [p for p in net.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in trained]
    times: list[float] = []
    losses: list[float] = []
    stopped_at = None
    last_logged = time.monotonic()
    with torch.enable_grad(), evaluating(net):
        for step in range(0, steps, stride):
            draw = abs(process.clean_draw - (step + 0.5) / steps)
            loss = 0.0
            net.zero_grad(set_to_none=True)
            for rows in parts:
                clean = images[rows].to(device)
                at = _AtTime(draws, rows, draw, device)
                corrupted = process.corrupt(clean, at)
                out = predict(net, corrupted.inputs, conditioning[rows].to(device))
                term = process.loss(out, corrupted)["mse"].sum() / len(images)
                term.backward()
                loss += float(term.detach())
            if not math.isfinite(loss):
                raise InputError(f"pruner=diff_pruning: the loss at time {draw:g} is {loss}")
            times.append(draw)
            losses.append(loss)
            if loss < threshold * max(losses):
                stopped_at = len(losses) - 1
                break
            for total, parameter in zip(sums, trained, strict=True):
                if parameter.grad is not None:
                    total += parameter.grad
            if time.monotonic() - last_logged >= SECONDS_PER_LINE:
                last_logged = time.monotonic()
                share = loss / max(losses)
                log.info(
                    "prune: %s of at most %s times, loss %.4f, %.3f of the largest (ends below %g)",
                    *(f"{len(times):,}", f"{len(range(0, steps, stride)):,}", loss, share),
                    threshold,
                )
    for total, parameter in zip(sums, trained, strict=True):
        parameter.grad = total
    return Trajectory(times, losses, stopped_at)


def group_importance(net: Backbone) -> dict[str, Tensor]:
    """Importance of every member of every group: ``|weight * gradient|`` summed over its places.

    Linear layers, convolutions and norms are scored by Torch-Pruning's `GroupTaylorImportance`.
    It leaves out embeddings and tables, which are added here; fixed tables have no gradient and
    do not count.

    Args:
        net: the network with gradients in ``grad``.

    Returns:
        Shape (U,), float64, on the CPU, by the name of the group.
    """
    import torch_pruning as tp

    score = tp.importance.GroupTaylorImportance(
        group_reduction="sum",
        normalizer=None,
        bias=True,
        target_types=[nn.modules.conv._ConvNd, nn.Linear, nn.LayerNorm],
    )
    groups = coupled_groups(net)
    found = {}
    for group in net.width_plan().groups:
        channels = groups[group.name]
        scores = score(channels).double().cpu()
        for tensor, axis, indices, owners in cut_tensors(channels):
            if tensor.grad is not None and _is_left_out(channels, tensor):
                others = [other for other in range(tensor.ndim) if other != axis]
                product = (tensor.detach() * tensor.grad).abs().sum(others).double().cpu()
                scores.index_add_(0, torch.tensor(owners), product[indices])
        found[group.name] = scores.view(-1, group.unit).sum(1)
    return found


def _is_left_out(group: Any, tensor: Tensor) -> bool:
    """Whether the library leaves a tensor of a group out of its importance."""
    modules = [item.dep.target.module for item in group]
    return any(
        module is tensor or (isinstance(module, nn.Embedding) and module.weight is tensor)
        for module in modules
    )


class _AtTime:
    """Draws that are all at one time (`tinyfusion.processes.contract.Draws`).

    Args:
        draws: everything else, of the whole batch.
        rows: which samples of it.
        time: the draw of the times.
        device: where draws are wanted.
    """

    def __init__(self, draws: FixedDraws, rows: slice, time: float, device: torch.device) -> None:
        self._whole, self._part = draws.part(slice(0, draws.count)), draws.part(rows)
        self._count, self._time, self._device = len(range(draws.count)[rows]), time, device

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        if purpose == "times":
            return torch.full((self._count, *shape), self._time, device=self._device)
        return self._part.uniform(purpose, *shape).to(self._device)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        return self._part.normal(purpose, *shape).to(self._device)

    def shared(self, purpose: str) -> float:
        return self._whole.shared(purpose)
