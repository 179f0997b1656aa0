"""What a backbone states about itself, checked without running it."""

from __future__ import annotations

import copy

from torch import nn

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.rebuild import check_rebuilds, check_sizes, plain_config
from tinyfusion.errors import InputError


def check_blocks(net: Backbone) -> None:
    """``blocks`` is a list of different modules that belong to the network."""
    blocks = getattr(net, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise InputError(
            "self.blocks must be an nn.ModuleList of at least one block, found "
            f"{'an empty one' if isinstance(blocks, nn.ModuleList) else type(blocks).__name__}"
        )
    if net.depth != len(blocks):
        raise InputError(f"depth is {net.depth}, but there are {len(blocks)} blocks")
    if len({id(block) for block in blocks}) < len(blocks):
        raise InputError("self.blocks holds the same module twice: give every place its own")
    own = {id(parameter) for parameter in net.parameters()}
    for index, block in enumerate(blocks):
        strangers = [n for n, p in block.named_parameters() if id(p) not in own]
        if strangers:
            raise InputError(
                f"parameter {strangers[0]!r} of block {index} is not among net.parameters(), so "
                "it would be neither trained nor saved: register the blocks in the network"
            )


def check_attributes(net: Backbone) -> None:
    """Sizes of the data and the kind of process are there."""
    check_sizes(net)
    if not isinstance(net.process_kind, str) or not net.process_kind:
        raise InputError(
            "process_kind must name the kind of process the backbone was made for, such as "
            f"'diffusion' or 'interpolant', found {net.process_kind!r}"
        )


def check_borders(net: Backbone) -> None:
    """``borders`` are ascending block indices between the first and the last."""
    borders = tuple(net.borders)
    inside = all(type(border) is int and 0 < border < net.depth for border in borders)
    if not inside or list(borders) != sorted(set(borders)):
        raise InputError(
            f"borders must be ascending block indices within 1..{net.depth - 1}, at each of which "
            f"another stack begins, found {borders}"
        )


def check_null_label(net: Backbone) -> None:
    """A backbone that is trained with label dropout has a null label, which is no class."""
    if not net.config().get("class_dropout_prob"):
        return
    try:
        label = net.null_label
    except NotImplementedError:
        raise InputError(
            f"config() has class_dropout_prob={net.config()['class_dropout_prob']}, but there is "
            "no null_label: give the label that stands for no class, or class_dropout_prob=0"
        ) from None
    if type(label) is not int or 0 <= label < net.num_classes:
        raise InputError(
            f"null_label must be an integer that is none of the classes 0..{net.num_classes - 1}, "
            f"found {label!r}"
        )


def check_config(net: Backbone) -> None:
    """``config()`` is plain data that gives the same tensors, also after ``keep_blocks``."""
    if plain_config(net) != plain_config(net):
        raise InputError("config() gives something else every time it is asked")
    check_rebuilds(net)


def check_copy(net: Backbone) -> None:
    """``copy.deepcopy`` gives a network of its own."""
    twin = copy.deepcopy(net)
    places = {p.untyped_storage().data_ptr() for p in net.parameters() if p.numel()}
    shared = [n for n, p in twin.named_parameters() if p.untyped_storage().data_ptr() in places]
    if shared:
        raise InputError(f"copy.deepcopy(net) shares the memory of {shared[0]!r} with net")
    if any(a is b for a, b in zip(twin.blocks, net.blocks, strict=True)):
        raise InputError("the blocks of copy.deepcopy(net) are those of net")
