"""A student whose blocks start from the mean of the blocks that each one stands for."""

from __future__ import annotations

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.recovery.alignment import alignment
from tinyfusion.surgery import prune


def prune_averaged(net: Backbone, decision: Decision) -> Backbone:
    """Cut a network; a kept block followed by k removed ones gets the mean of all k + 1.

    The mean is taken tensor by tensor. Blocks removed before the first kept one of a stack are in
    no mean, and a kept block that no removed one follows stays as it is, as does everything outside
    the blocks.

    Args:
        net: the source model; left as it is.
        decision: what of it stays.

    Raises:
        InputError: a decision that removes no blocks, blocks whose tensors are not alike, or see
            `tinyfusion.surgery.prune`.
    """
    if not decision.is_about_blocks or decision.resized is not None:
        raise InputError(
            "start=averaged takes the mean of each kept block and the removed ones that follow it, "
            f"but the decision of {decision.method!r} removes no blocks; give start=kept"
        )
    student = prune(net, decision)
    origins = decision.origins
    for index, last in alignment(origins, net.depth, None, net.borders):
        first = origins[index]
        if last == first:
            continue
        group = [dict(net.blocks[block].named_parameters()) for block in range(first, last + 1)]
        for name, value in student.blocks[index].named_parameters():
            same = [tensors.get(name) for tensors in group]
            alike = [
                tensor for tensor in same if tensor is not None and tensor.shape == value.shape
            ]
            if len(alike) < len(group):
                raise InputError(
                    f"start=averaged: blocks {first}..{last} have no mean, as their {name!r} are "
                    "not of one shape; give start=kept"
                )
            with torch.no_grad():
                value.copy_(torch.stack([tensor.detach() for tensor in alike]).mean(0))
    return student
