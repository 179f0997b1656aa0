"""A unit run with gradients only for the samples that keep it.

In ``x' = m B(x) + (1 - m) x`` with a hard mask, a sample that drops the unit needs ``B(x)`` for the
mask's gradient ``<dL/dx', B(x) - x>`` alone: no backward pass through ``B``, for which only the
change ``B(x) - x`` is stored.

Shape suffixes: B batch, L units, R samples that are run with gradients, E samples that are only
evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from tinyfusion.states import States, like_streams, map_streams, rows_of, streams

LEAST = 2
"""Samples that a unit is run for at least: with none, its weights would have no gradient instead
of one of zero, which optimisers and DDP tell apart, and a batch of one is compiled by itself."""


@dataclass(frozen=True)
class UnitRows:
    """Which samples of a batch one unit is run for, and how.

    Attributes:
        run: numbers of the samples that are run with gradients, shape (R,): those that keep the
            unit, and others if they are fewer than `LEAST`.
        kept: how many of these, the first ones, keep the unit.
        evaluated: numbers of the samples that are run without gradients, shape (E,).
        weight_B: factor of each sample's gradient for its mask, shape (B,).
    """

    run: Tensor
    kept: int
    evaluated: Tensor
    weight_B: Tensor


def rows_of_units(
    kept_BL: Tensor,
    sampled_BL: Tensor | None,
    share: float,
    both_ways: bool,
    expected_share: float,
) -> list[UnitRows]:
    """Which samples each unit is run for.

    The device is waited for once: the numbers of rows are needed on the host.

    Args:
        kept_BL: which samples keep which units, boolean.
        sampled_BL: pairs whose mask gets a gradient although the sample drops the unit, boolean;
            ``None`` for all of them.
        share: probability of being in ``sampled_BL``; gradients are divided by it.
        both_ways: run every unit with and without gradients, even if for samples whose result is
            not used: sharded weights are gathered by all ranks together, and ranks hold different
            samples.
        expected_share: share of the pairs that are kept where the mask has no values (dry runs).
    """
    # 0 where the unit is run with gradients, 1 where it is evaluated, 2 where it is left out.
    class_BL = (~kept_BL).to(torch.uint8)
    weight_BL = torch.ones_like(class_BL, dtype=torch.float32)
    if sampled_BL is not None:
        left_out_BL = ~kept_BL & ~sampled_BL
        class_BL = class_BL + left_out_BL.to(torch.uint8)
        weight_BL = torch.where(kept_BL, 1.0, sampled_BL / share)
    order_BL = class_BL.argsort(dim=0, stable=True)
    batch = len(kept_BL)
    if isinstance(class_BL, FakeTensor):
        sampled = share if sampled_BL is not None else 1.0
        counts_2L = _expected_counts(batch, kept_BL.shape[1], expected_share, sampled)
    else:
        counts_2L = torch.stack([(class_BL == 0).sum(0), (class_BL == 1).sum(0)]).tolist()
    found = []
    for unit, (kept, dropped) in enumerate(zip(*counts_2L, strict=True)):
        order_B = order_BL[:, unit]
        # In the order of ``order_B``: [kept][evaluated][left out]; both runs take LEAST at least.
        run = max(kept, min(LEAST, batch))
        first, last = run, max(run, kept + dropped)
        if both_ways or last > first:
            # Samples that are run both ways count as run with gradients.
            last = min(max(last, first + LEAST), batch)
            first = max(0, min(first, last - LEAST))
        found.append(UnitRows(order_B[:run], kept, order_B[first:last], weight_BL[:, unit]))
    return found


def _expected_counts(batch: int, units: int, kept: float, sampled: float) -> list[list[int]]:
    """Samples that keep each unit, and that are evaluated for it: as even as whole numbers are."""
    ends = [round(batch * kept * unit) for unit in range(units + 1)]
    of_unit = [last - first for first, last in pairwise(ends)]
    return [of_unit, [round((batch - count) * sampled) for count in of_unit]]


def run_sparse(
    run: Callable[[States, Any], States],
    rows: UnitRows,
    keep_B: Tensor,
    states: States,
    condition: Any,
    condition_rows: Callable[[Any, Tensor], Any],
) -> States:
    """``keep * run(states) + (1 - keep) * states``, with gradients as if all samples were run.

    Args:
        run: the unit; what it does to a sample does not depend on the others.
        rows: which samples are run, and how; those of ``keep_B``.
        keep_B: the mask, 0 or 1, with a gradient.
        states: states before the unit.
        condition: as for the unit.
        condition_rows: gives the condition of some samples, see `Backbone.condition_rows`.

    Returns:
        States after it.
    """
    changed: States | None = None
    if len(rows.evaluated):
        with torch.no_grad():
            some = rows_of(states, rows.evaluated)
            out = run(some, condition_rows(condition, rows.evaluated))
            changed = map_streams(torch.sub, out, some)
    parts = [cast("tuple[Tensor, Tensor]", _Parted.apply(x, rows)) for x in streams(states)]
    some = like_streams(states, [part_R for part_R, _ in parts])
    rest = like_streams(states, [rest_B for _, rest_B in parts])
    out = run(some, condition_rows(condition, rows.run))

    def mix(rest_B: Tensor, before_R: Tensor, after_R: Tensor, *changed_E: Tensor) -> Tensor:
        # Under autocast a unit may give another type than it takes.
        dtype = torch.promote_types(rest_B.dtype, after_R.dtype)
        mixed = _Mixed.apply(
            rest_B.to(dtype), before_R.detach(), after_R.to(dtype), keep_B, rows, *changed_E
        )
        return cast(Tensor, mixed)

    return map_streams(mix, rest, some, out, *([] if changed is None else [changed]))


class _Parted(torch.autograd.Function):
    """The samples that are run, and all of them, of which `_Mixed` uses the others.

    So the gradients of both are put together in one pass over them.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: UnitRows) -> tuple[Tensor, Tensor]:
        ctx.rows = rows
        return states.index_select(0, rows.run), states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient_R, gradient), rows = gradients, ctx.rows
        kept = rows.kept
        return gradient.index_copy(0, rows.run[:kept], gradient_R[:kept].to(gradient.dtype)), None


class _Mixed(torch.autograd.Function):
    """States in which samples have been replaced, and the gradients of the mask behind it.

    What the replaced samples were has no gradient from here: that is left to `_Parted`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        before_R: Tensor,
        after_R: Tensor,
        keep_B: Tensor,
        rows: UnitRows,
        changed_E: Tensor | None = None,
    ) -> Tensor:
        ctx.rows, ctx.mask_type = rows, keep_B.dtype
        ctx.save_for_backward(after_R - before_R, changed_E)
        return states.index_copy(0, rows.run[: rows.kept], after_R[: rows.kept])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,), rows = gradients, ctx.rows
        changed_R, changed_E = ctx.saved_tensors
        gradient_R = gradient.index_select(0, rows.run)
        mask_B = torch.zeros(len(gradient), dtype=ctx.mask_type, device=gradient.device)
        if changed_E is not None:
            gradient_E = gradient.index_select(0, rows.evaluated)
            products_E = _products(gradient_E, changed_E, mask_B)
            mask_B.index_copy_(0, rows.evaluated, products_E)
        mask_B.index_copy_(0, rows.run, _products(gradient_R, changed_R, mask_B))
        mask_B *= rows.weight_B
        gradient_R[rows.kept :] = 0.0
        return gradient, None, gradient_R, mask_B, None, None


def _products(gradient: Tensor, changed: Tensor, like: Tensor) -> Tensor:
    """Sample by sample the sum of products, shape (N,), of the mask's type."""
    dtype = torch.promote_types(gradient.dtype, like.dtype)
    return (gradient * changed).flatten(1).sum(1, dtype=dtype).to(like.dtype)
