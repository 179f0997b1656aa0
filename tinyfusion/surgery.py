"""Backbone and decision in, smaller backbone out; only what stays is copied."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.coupling import Coupling, coupling
from tinyfusion.backbones.presets import build_empty, family_of
from tinyfusion.backbones.rebuild import plain_config
from tinyfusion.changes import Resizing
from tinyfusion.decision import Decision, check_kept
from tinyfusion.errors import InputError
from tinyfusion.units import BRANCHES, Place


def prune(net: Backbone, decision: Decision | Iterable[int]) -> Backbone:
    """Copy what stays of ``net``: blocks, branches of blocks, and channels.

    Args:
        net: the source model; left as it is.
        decision: a `Decision`, or the indices of the blocks to keep.

    Returns:
        A backbone that shares no memory with ``net``. Its tensors are bit-identical to those of
        the source, or slices of them where channels or branches go. ``kept_from`` holds each
        block's index in the first model of the chain (a model pruned twice still knows its blocks'
        original places): of a block that stands for an interval, that of the block whose weights
        it starts with.

    Raises:
        InputError: a decision made for another depth or other widths, branches that the model does
            not have, or an interval of blocks of different kinds.
    """
    if not isinstance(decision, Decision):
        decision = Decision(check_kept(decision, net.depth), net.depth)
    _check_fits(net, decision)
    # The same tensors in modules of their own, of which whatever goes can be dropped.
    tensors: dict[int, Tensor] = {
        id(p): nn.Parameter(p.detach(), p.requires_grad) for p in net.parameters()
    }
    tensors |= {id(b): b.detach() for b in net.buffers()}
    left = copy.deepcopy(net, tensors)
    left.remove_branches(decision.removed)
    if decision.is_about_blocks:
        origin = net.kept_from or tuple(range(net.depth))
        left.keep_blocks(decision.origins)
        left.kept_from = tuple(origin[i] for i in decision.origins)
        left.source_borders = net.borders if net.kept_from is None else net.source_borders
    if decision.resized is None:
        return copy.deepcopy(left)
    return _narrowed(left, _of_blocks_left(decision.resized, net, decision))


def _check_fits(net: Backbone, decision: Decision) -> None:
    """Refuse a decision about blocks or branches that the model does not have.

    Raises:
        InputError: another number of blocks, an interval across a border, a branch of a block that
            goes, or a block that would be left without branches.
    """
    if decision.source_depth not in (None, net.depth):
        raise InputError(
            f"the decision was made for a model of {decision.source_depth} blocks, "
            f"this one has {net.depth}"
        )
    for interval in decision.replaced:
        crossed = [border for border in net.borders if interval.start < border < interval.stop]
        if crossed:
            raise InputError(
                f"the decision replaces blocks {interval.start}..{interval.stop - 1} by one, but "
                f"blocks of another kind begin at {crossed[0]}"
            )
    if not decision.removed:
        return
    stay = decision.origins if decision.is_about_blocks else range(net.depth)
    left: dict[int, list[str]] = {}
    for unit in net.units(BRANCHES):
        assert unit.index is not None
        if unit.name in decision.removed and unit.index not in stay:
            raise InputError(f"the decision removes {unit.name} of a block that does not stay")
        left.setdefault(unit.index, [])
        left[unit.index] += [] if unit.name in decision.removed else [unit.name]
    empty = [index for index, names in left.items() if not names]
    if empty:
        raise InputError(
            f"the decision removes all branches of block {empty[0]}: leave the block out of kept"
        )


def _of_blocks_left(resized: Resizing, net: Backbone, decision: Decision) -> Resizing:
    """The same record with groups of channels numbered as in the model of the blocks that stay."""
    if not decision.is_about_blocks:
        return resized
    blocks = [unit.place for unit in net.units()]
    new: dict[Place, Place] = {}
    counts: dict[str, int] = {}
    for index in decision.origins:
        stack = blocks[index].stack
        number = counts.get(stack, 0)
        counts[stack] = number + 1
        new[blocks[index]] = Place(stack, number, number + 1)

    kept, sizes = {}, {}
    for name, members in resized.kept.items():
        place = Place.parse(name)
        block = replace(place, part="") if place.stack else None
        if block in blocks and block not in new:
            continue  # its block goes
        here = str(replace(new[block], part=place.part)) if block in new else name
        kept[here], sizes[here] = members, resized.source_sizes[name]
    return replace(resized, kept=kept, source_sizes=sizes)


def _narrowed(net: Backbone, resized: Resizing) -> Backbone:
    """Copy ``net`` with only the kept channels, heads and neurons."""
    found = coupling(net)
    _check_channels(found, resized)
    arguments = {**plain_config(net), **found.plan.fixed, **resized.widths}
    # Nothing is written to its parameters, so that they claim no memory.
    pruned = build_empty({"backbone": family_of(net), **arguments})
    shapes = {name: tuple(tensor.shape) for name, tensor in pruned.state_dict().items()}
    slices, state = found.slices(resized.kept), net.state_dict(keep_vars=True)
    for name in {**state, **shapes}:
        cut = _sliced(state[name].detach(), slices.get(name, [])) if name in state else None
        if cut is None or tuple(cut.shape) != shapes.get(name):
            raise InputError(
                f"{type(net).__name__} of {resized.widths} has {name} of shape "
                f"{shapes.get(name)}, its width plan leaves {None if cut is None else cut.shape}"
            )
        _assign(pruned, name, cut, state[name].requires_grad)
    # What is in no state dict, such as tables made by the constructor, is where it was made.
    pruned.to(next(net.parameters()).device)
    pruned.train(net.training)
    pruned.kept_from, pruned.source_borders = net.kept_from, net.source_borders
    return pruned


def _assign(net: nn.Module, name: str, value: Tensor, requires_grad: bool) -> None:
    """Put a tensor in the place of a parameter or buffer, whose memory is given back."""
    owner, _, own_name = name.rpartition(".")
    module = net.get_submodule(owner)
    is_parameter = own_name in module._parameters
    setattr(module, own_name, nn.Parameter(value, requires_grad) if is_parameter else value)


def _sliced(tensor: Tensor, cuts: list[tuple[int, Tensor]]) -> Tensor:
    for axis, indices in cuts:
        tensor = tensor.index_select(axis, indices.to(tensor.device))
    return tensor if cuts else tensor.clone()


def _check_channels(found: Coupling, resized: Resizing) -> None:
    """Refuse a decision about channels of another network, or one that keeps uneven numbers.

    Raises:
        InputError: groups of other sizes, other widths, or a group that keeps another number of
            members than its width says.
    """
    for name in {**found.units, **resized.source_sizes}:
        mine, theirs = found.units.get(name, "no"), resized.source_sizes.get(name, "no")
        if mine != theirs:
            raise InputError(
                f"the decision was made for a model with {theirs} channels in {name}, this one "
                f"has {mine}"
            )
    if resized.widths.keys() != found.widths.keys():
        raise InputError(
            f"the decision resizes {', '.join(resized.widths)}; this model's widths are "
            f"{', '.join(found.widths)}"
        )
    for group in found.plan.groups:
        members, wanted = len(resized.kept[group.name]), resized.widths[group.argument]
        if members != wanted:
            raise InputError(
                f"the decision keeps {members} channels of {group.name} but says "
                f"{group.argument}={wanted}"
            )
