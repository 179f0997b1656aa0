"""Backbone and decision in, shallow or narrow backbone out."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.coupling import Coupling, coupling
from tinyfusion.backbones.presets import build_empty, family_of
from tinyfusion.backbones.rebuild import plain_config
from tinyfusion.decision import Decision, check_kept
from tinyfusion.errors import InputError
from tinyfusion.widths import WidthDecision


def prune(net: Backbone, decision: Decision | WidthDecision | Iterable[int]) -> Backbone:
    """Copy ``net`` with only the kept blocks, or with all of them and only the kept channels.

    Args:
        net: the source model; left as it is.
        decision: a `Decision`, the indices of the blocks to keep, or a `WidthDecision`.

    Returns:
        A backbone of ``len(kept)`` blocks whose tensors are bit-identical to the source's and
        whose ``kept_from`` holds each block's index in the first model of the chain (a model
        pruned twice still knows its blocks' original places). Of a width decision: one of all
        blocks whose tensors are slices of the source's.

    Raises:
        InputError: indices out of range or doubled, or a decision made for another depth or
            other widths.
    """
    if isinstance(decision, WidthDecision):
        return _narrowed(net, decision)
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


def _narrowed(net: Backbone, decision: WidthDecision) -> Backbone:
    """Copy ``net`` with only the kept channels, heads and neurons."""
    found = coupling(net)
    _check_fits(found, decision)
    arguments = {**plain_config(net), **found.plan.fixed, **decision.widths}
    pruned = build_empty({"backbone": family_of(net), **arguments})
    slices = found.slices(decision.kept)
    state = {
        name: _sliced(tensor.detach(), slices.get(name, []))
        for name, tensor in net.state_dict().items()
    }
    wanted = {name: tuple(tensor.shape) for name, tensor in pruned.state_dict().items()}
    for name, tensor in state.items():
        if tuple(tensor.shape) != wanted.get(name):
            raise InputError(
                f"{type(net).__name__} of {decision.widths} has {name} of shape "
                f"{wanted.get(name)}, its width plan leaves {tuple(tensor.shape)}"
            )
    pruned.load_state_dict(state, assign=True)
    # What is in no state dict, such as tables made by the constructor, is where it was made.
    pruned.to(next(net.parameters()).device)
    pruned.train(net.training)
    for mine, theirs in zip(pruned.parameters(), net.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    pruned.kept_from, pruned.source_borders = net.kept_from, net.source_borders
    return pruned


def _sliced(tensor: Tensor, cuts: list[tuple[int, Tensor]]) -> Tensor:
    for axis, indices in cuts:
        tensor = tensor.index_select(axis, indices.to(tensor.device))
    return tensor.clone()


def _check_fits(found: Coupling, decision: WidthDecision) -> None:
    """Refuse a decision that was made for another network, or that keeps uneven numbers.

    Raises:
        InputError: so it is.
    """
    for name in {**found.units, **decision.source_units}:
        mine, theirs = found.units.get(name, "no"), decision.source_units.get(name, "no")
        if mine != theirs:
            raise InputError(
                f"the width decision was made for a model with {theirs} units in {name}, this one "
                f"has {mine}"
            )
    if decision.widths.keys() != found.widths.keys():
        raise InputError(
            f"the width decision cuts {', '.join(decision.widths)}; this model's widths are "
            f"{', '.join(found.widths)}"
        )
    for group in found.plan.groups:
        units, wanted = len(decision.kept[group.name]), decision.widths[group.argument]
        if units != wanted:
            raise InputError(
                f"the width decision keeps {units} units in {group.name} but says "
                f"{group.argument}={wanted}"
            )
