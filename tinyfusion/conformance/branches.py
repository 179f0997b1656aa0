"""What a backbone does with the branches of its blocks, if these name any."""

from __future__ import annotations

from typing import Any

import torch

from tinyfusion.backbones.branches import Branch, BranchedBlock
from tinyfusion.backbones.contract import Backbone, run_plain
from tinyfusion.backbones.rebuild import check_rebuilds
from tinyfusion.conformance.subject import Subject, same, written_to
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.states import States
from tinyfusion.surgery import prune
from tinyfusion.units import BRANCHES


def has_branches(net: Backbone) -> bool:
    """Whether any block names branches."""
    return any(isinstance(block, BranchedBlock) for block in net.blocks)


def check_branches(subject: Subject) -> None:
    """Branches in a row are their block, and a network without one computes what skipping does."""
    net = subject.net
    units = net.units(BRANCHES)
    in_turn = subject.forward(run_block=net.run_units(BRANCHES, run_plain))
    if not same(in_turn, subject.forward()):
        raise InputError(
            "the branches of the blocks, run one after the other, compute something else than the "
            "blocks: each branch must hold its own skip connection"
        )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for gone, unit in enumerate(units):
        if sum(unit.blocks == other.blocks for other in units) == 1:
            continue  # with its last branch a block goes
        pruned = prune(net, Decision(removed=(unit.name,)))
        if unit.name not in pruned.removed_branches:
            raise InputError(f"remove_branch({unit.place.part!r}) left it in branches()")
        check_rebuilds(pruned)

        def skipping(
            number: int, branch: Branch, states: States, condition: Any, gone: int = gone
        ) -> States:
            return states if number == gone else branch(states, condition)

        with torch.no_grad():
            out = pruned(*subject.inputs)
        if not same(out, subject.forward(run_block=net.run_units(BRANCHES, skipping))):
            raise InputError(
                f"the network without {unit.name} computes something else than the full one that "
                "skips it: what a branch does must not depend on the others"
            )
    changed = written_to(net, before)
    if changed is not None:
        raise InputError(
            f"remove_branch wrote into {changed!r} of the network that is pruned: give the "
            "block new parameters instead"
        )
