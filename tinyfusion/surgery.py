"""Backbone and decision in, shallow backbone out."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from tinyfusion.backbones.contract import Backbone
from tinyfusion.decision import Decision, check_kept
from tinyfusion.errors import InputError


def prune(net: Backbone, decision: Decision | Iterable[int]) -> Backbone:
    """Copy ``net`` with only the kept blocks.

    Args:
        net: the source model; left as it is.
        decision: a `Decision`, or the indices of the blocks to keep.

    Returns:
        A backbone of ``len(kept)`` blocks whose tensors are bit-identical to the source's and
        whose ``kept_from`` holds each block's index in the first model of the chain (a model
        pruned twice still knows its blocks' original places).

    Raises:
        InputError: indices out of range or doubled, or a decision made for another depth.
    """
    if isinstance(decision, Decision):
        if decision.source_depth != net.depth:
            raise InputError(
                f"the decision was made for a model of {decision.source_depth} blocks, "
                f"this one has {net.depth}"
            )
        kept = decision.kept
    else:
        kept = check_kept(decision, net.depth)
    origin = net.kept_from or tuple(range(net.depth))
    pruned = copy.deepcopy(net)
    pruned.keep_blocks(kept)
    pruned.kept_from = tuple(origin[i] for i in kept)
    pruned.source_borders = net.borders if net.kept_from is None else net.source_borders
    return pruned
