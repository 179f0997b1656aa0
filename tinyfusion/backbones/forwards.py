"""Running a network: block by block, unit by unit, with its conditioning, in evaluation mode.

A *block runner* decides what becomes of every block of a forward; see
`tinyfusion.backbones.contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinyfusion.backbones.branches import Branch
from tinyfusion.conditioning import Conditioning
from tinyfusion.errors import InputError
from tinyfusion.states import States
from tinyfusion.units import CHANNELS, Unit

BlockRunner = Callable[[int, nn.Module, States, Any], States]
"""``runner(index, block, states, condition) -> states``; see `tinyfusion.states`."""

UnitRunner = Callable[[int, Branch, States, Any], States]
"""``runner(number, unit, states, condition) -> states``: as a block runner, with the number of the
unit among those that are run."""

_RECOMPUTED = "_tinyfusion_recomputed"


class Network(Protocol):
    """What is asked of a backbone here."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The residual blocks in the order in which they run."""


# -- blocks -------------------------------------------------------------------------------------


def run_plain(index: int, block: Branch, states: States, condition: Any) -> States:
    """Run one block as it is; every other runner runs its blocks through this one.

    In a block that :func:`recompute_blocks` marked, autograd keeps the input alone and computes
    the block again in the backward pass.
    """
    if getattr(block, _RECOMPUTED, False) and torch.is_grad_enabled():
        return checkpoint(block, states, condition, use_reentrant=False)
    return block(states, condition)


def running_only(kept: Collection[int]) -> BlockRunner:
    """A runner that leaves the states as they are at all blocks but those in ``kept``."""

    def runner(index: int, block: nn.Module, states: States, condition: Any) -> States:
        return run_plain(index, block, states, condition) if index in kept else states

    return runner


def recompute_blocks(net: Network, recompute: bool = True) -> None:
    """Trade time for memory: recompute the blocks' activations in the backward pass.

    Args:
        net: the network; forwards without gradients stay as they are.
        recompute: whether to, from now on.
    """
    for block in net.blocks:
        setattr(block, _RECOMPUTED, recompute)


def compile_blocks(net: Network, backend: str, dynamic: bool | None = None) -> None:
    """Compile every block in place; names, state dict and hooks stay as they are.

    Blocks are alike, so that compiling them takes about as long as compiling one of them.

    Args:
        net: the network.
        backend: name of a ``torch.compile`` backend, such as ``inductor``.
        dynamic: as in ``torch.compile``: ``False`` compiles anew for every shape of the states.
    """
    for block in net.blocks:
        block.compile(backend=backend, dynamic=dynamic)


# -- units of any kind --------------------------------------------------------------------------


class Routes(NamedTuple):
    """Which units are run where.

    Attributes:
        spans: number and unit of the block or interval that a block belongs to, by block.
        branches: numbers of a block's branches by name, by block.
    """

    spans: dict[int, tuple[int, Unit]]
    branches: dict[int, dict[str, int]]


def routes(units: Sequence[Unit]) -> Routes:
    """Lay units over the blocks of their network.

    Args:
        units: blocks, intervals and branches in any order.

    Raises:
        InputError: channels, which don't run one after the other, or units that overlap.
    """
    spans: dict[int, tuple[int, Unit]] = {}
    branches: dict[int, dict[str, int]] = {}
    for number, unit in enumerate(units):
        if unit.kind == CHANNELS:
            raise InputError(
                f"{unit.name}: channels don't run one after the other; valid: blocks, branches of "
                "blocks, intervals of blocks"
            )
        part = unit.place.part
        for block in unit.blocks:
            inside = branches.get(block, {})
            if block in spans or (part in inside if part else inside):
                raise InputError(f"{unit.name} overlaps another unit that the same forward runs")
            if part:
                branches.setdefault(block, {})[part] = number
            else:
                spans[block] = (number, unit)
    return Routes(spans, branches)


def through_units(net: Network, units: Sequence[Unit], runner: UnitRunner) -> BlockRunner:
    """A block runner that sends units through a runner of units.

    Args:
        net: the network that the units belong to.
        units: see `routes`; whatever lies outside them runs as it is.
        runner: see `Backbone.run_units`.

    Raises:
        InputError: see `routes`.
    """
    spans, branches = routes(units)

    def run_block(index: int, block: nn.Module, states: States, condition: Any) -> States:
        if index in spans:
            number, unit = spans[index]
            if index != unit.index:
                return states  # has run with the first block of its interval
            alone = len(unit.blocks) == 1
            run: Branch = block if alone else partial(_run_all, unit.blocks, net.blocks)
            return runner(number, run, states, condition)
        numbers = branches.get(index)
        if numbers is None:
            return run_plain(index, block, states, condition)

        def run_branch(name: str, branch: Branch, states: States, condition: Any) -> States:
            if name not in numbers:
                return branch(states, condition)
            return runner(numbers[name], branch, states, condition)

        routed = partial(block, run_branch=run_branch)
        setattr(routed, _RECOMPUTED, getattr(block, _RECOMPUTED, False))
        return run_plain(index, routed, states, condition)

    return run_block


def _run_all(
    indices: Iterable[int], blocks: nn.ModuleList, states: States, condition: Any
) -> States:
    for index in indices:
        states = run_plain(index, blocks[index], states, condition)
    return states


# -- whole networks -----------------------------------------------------------------------------


def predict(
    net: nn.Module,
    inputs: Sequence[Tensor],
    conditioning: Conditioning,
    run_block: BlockRunner = run_plain,
) -> Tensor:
    """Run ``net``: the one place where a network is given its conditioning.

    Args:
        net: the backbone.
        inputs: what the process made of clean data, each of shape (B, ...).
        conditioning: of the same samples, on the same device.
        run_block: how to run each block.

    Returns:
        The prediction, shape (B, ...).
    """
    return net(*inputs, *conditioning.arguments(), run_block=run_block)


def forward_with_states(
    net: nn.Module,
    inputs: Sequence[Tensor],
    conditioning: Conditioning,
    wanted: Iterable[int],
    run_block: BlockRunner = run_plain,
) -> tuple[Tensor, dict[int, States]]:
    """Run ``net`` and also return the hidden states after the ``wanted`` blocks.

    Args:
        net: the backbone.
        inputs: see `predict`.
        conditioning: see `predict`.
        wanted: block indices.
        run_block: how to run each block.

    Returns:
        The prediction and a dict from block index to states.
    """
    wanted = frozenset(wanted)
    collected: dict[int, States] = {}

    def runner(index: int, block: nn.Module, states: States, condition: Any) -> States:
        out = run_block(index, block, states, condition)
        if index in wanted:
            collected[index] = out
        return out

    return predict(net, inputs, conditioning, runner), collected


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put ``net`` in eval mode and give each of its modules its own mode back afterwards."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def count_parameters(net: nn.Module, trainable_only: bool = False) -> int:
    """Number of tensor elements among the parameters of ``net``.

    Args:
        net: any module, also one on the meta device.
        trainable_only: leave out parameters that take no gradient (fixed position tables).
    """
    return sum(p.numel() for p in net.parameters() if p.requires_grad or not trainable_only)


def dtype_of(net: nn.Module) -> torch.dtype:
    """Floating type of the first parameter of ``net``."""
    return next(net.parameters()).dtype
