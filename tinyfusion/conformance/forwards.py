"""What a backbone does with its inputs and its blocks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import predict, run_plain, running_only
from tinyfusion.conformance.subject import Subject, same, written_to
from tinyfusion.errors import InputError
from tinyfusion.seeding import generator
from tinyfusion.states import States, cat_states, map_streams, rows_of, streams
from tinyfusion.surgery import prune

_RUN = "in forward, 'for index, block in enumerate(self.blocks): states = run_block(index, block, "
_RUN += "states, condition)'"


def check_examples(subject: Subject) -> None:
    """``example_inputs`` are those of a forward, with as many samples as asked for."""
    for count in (1, 2):
        inputs = subject.net.example_inputs(count, "cpu")
        odd = [i for i, x in enumerate(inputs) if not x.ndim or x.shape[0] != count]
        if odd:
            raise InputError(
                f"example_inputs({count}) has {tuple(inputs[odd[0]].shape)} for the shape of input "
                f"{odd[0]}: the batch comes first"
            )
        expected = subject.net.example_conditioning(count, "cpu").arguments()
        shapes = [tuple(x.shape) for x in expected]
        if [tuple(x.shape) for x in inputs[-len(expected) :]] != shapes:
            raise InputError(
                f"example_inputs({count}) must end with what example_conditioning({count}) gives, "
                f"of shapes {shapes}"
            )
        with torch.no_grad():
            out = subject.net(*inputs)
        _check_batch(out, count)


def check_repeats(subject: Subject) -> None:
    """In eval mode nothing is random, and no forward leaves a trace for the next."""
    first = subject.forward()
    _check_batch(first, subject.count)
    if not torch.isfinite(first).all():
        raise InputError("the output holds values that are not finite")
    if not same(subject.forward(), first):
        raise InputError(
            "two forwards of the same inputs differ in eval mode: draw nothing at random there, "
            "and keep no state from one forward to the next"
        )


def check_order(subject: Subject) -> None:
    """Every block goes through ``run_block`` exactly once, with its index, in order."""
    net, seen = subject.net, []

    def recording(index: int, block: nn.Module, states: States, condition: Any) -> States:
        seen.append(index)
        if not 0 <= index < net.depth or block is not net.blocks[index]:
            raise InputError(
                f"run_block was given index {index} with a module that is not self.blocks[{index}]"
            )
        out = run_plain(index, block, states, condition)
        before, after = _described(states), _described(out)
        if after != before:
            raise InputError(
                f"block {index} maps states of shape {before} to {after}; a block that can be "
                "removed keeps both"
            )
        if any(len(stream) != subject.count for stream in streams(out)):
            raise InputError(f"the states of block {index} don't have the batch in front")
        return out

    recorded = subject.forward(run_block=recording)
    if seen != list(range(net.depth)):
        raise InputError(
            f"run_block was called for blocks {seen} instead of 0..{net.depth - 1}: {_RUN}"
        )
    if not same(recorded, subject.forward()):
        raise InputError("without run_block the output is another: its default must be run_plain")


def check_passes_on(subject: Subject) -> None:
    """The output depends on what ``run_block`` returned for each block."""
    plain = subject.forward()
    for changed in range(subject.net.depth):

        def changing(
            index: int, block: nn.Module, states: States, condition: Any, changed: int = changed
        ) -> States:
            out = run_plain(index, block, states, condition)
            if index != changed:
                return out
            draws = generator("conformance", "changed", index)
            return map_streams(lambda x: x + x.std() * torch.randn(x.shape, generator=draws), out)

        if torch.equal(subject.forward(run_block=changing), plain):
            raise InputError(
                f"the output stays the same if run_block changes the states of block {changed}: "
                f"use what it returns: {_RUN}"
            )


def check_rows(subject: Subject) -> None:
    """A sample's output is the same alone and in a batch."""
    together = subject.forward()
    for row in range(len(together)):
        rows = slice(row, row + 1)
        with torch.no_grad():
            alone = predict(
                subject.net, [x[rows] for x in subject.data], subject.conditioning[rows]
            )
        if not same(alone, together[row : row + 1]):
            raise InputError(
                f"sample {row} of a batch has another output than alone: no operation may mix "
                "samples (such as batch norm with the batch's own mean)"
            )


def check_condition_rows(subject: Subject) -> None:
    """Every block does to some samples what it does to them among all, told their condition."""
    net = subject.net

    def one_by_one(index: int, block: nn.Module, states: States, condition: Any) -> States:
        parts = []
        for row in range(subject.count):
            rows = torch.tensor([row])
            told = net.condition_rows(condition, rows)
            parts.append(run_plain(index, block, rows_of(states, rows), told))
        return cat_states(parts)

    if not same(subject.forward(run_block=one_by_one), subject.forward()):
        raise InputError(
            "condition_rows does not give the condition of some samples: blocks that are told it "
            "compute something else than among all samples; say in condition_rows what has the "
            "batch in front and what is the same for all"
        )


def check_no_class(subject: Subject) -> None:
    """The null conditioning, if there is one, is taken, and means something else than a class."""
    net, conditioning = subject.net, subject.conditioning
    # A class-conditional network of class_dropout_prob=0 need not know its null label.
    if not net.config().get("class_dropout_prob", True):
        return
    try:
        null = conditioning.null(net)
    except NotImplementedError:
        return
    with torch.no_grad():
        out = predict(net, subject.data, null)
    if torch.equal(out, subject.forward()):
        raise InputError(
            "the conditioning has no effect: the output without it (null_label) is that with it"
        )


def check_pruned(subject: Subject) -> None:
    """`keep_blocks` leaves what ``run_block`` computes if it skips the other blocks."""
    net = subject.net
    if net.depth == 1:
        return
    before = {name: value.clone() for name, value in net.state_dict().items()}
    # Of every stack some stay and some go, and all by themselves.
    for kept in (tuple(range(0, net.depth, 2)), tuple(range(1, net.depth, 2))):
        pruned = prune(net, kept)
        if pruned.depth != len(kept):
            raise InputError(f"keep_blocks({list(kept)}) left {pruned.depth} blocks")
        for new, old in enumerate(kept):
            _check_tensors(pruned.blocks[new], net.blocks[old], old)
        with torch.no_grad():
            out = pruned(*subject.inputs)
        if not same(out, subject.forward(run_block=running_only(kept))):
            raise InputError(
                f"the network pruned to blocks {list(kept)} computes something else than the full "
                "one in which run_block skips the others: what a block does must not depend on its "
                "place, and nothing may be done between blocks that depends on the depth"
            )
    changed = written_to(net, before)
    if changed is not None:
        raise InputError(
            f"keep_blocks wrote into {changed!r} of the network that is pruned: give the "
            "network new parameters instead"
        )
    twin = copy.deepcopy(pruned)
    with torch.no_grad():
        if not same(twin(*subject.inputs), out):
            raise InputError("the copy of a pruned network computes something else")


def _check_tensors(new: nn.Module, old: nn.Module, index: int) -> None:
    kept, before = new.state_dict(), old.state_dict()
    changed = [
        name
        for name, value in before.items()
        if name not in kept or not torch.equal(value, kept[name])
    ]
    if changed or len(kept) != len(before):
        raise InputError(f"keep_blocks changed tensors of block {index}, such as {changed[:1]}")


def _described(states: States) -> str:
    """Shape and type of every stream."""
    return ", ".join(f"{tuple(x.shape)} and {x.dtype}" for x in streams(states))


def _check_batch(out: Any, count: int) -> None:
    if not isinstance(out, Tensor) or not out.ndim or out.shape[0] != count:
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(f"forward of {count} sample(s) must give a tensor (B, ...), got {found}")
