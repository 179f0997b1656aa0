"""The tree of what choices of blocks begin with, and a block runner that walks through it.

Shape suffixes: see `tinyfusion.metrics.candidates`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from tinyfusion.backbones.contract import Backbone, run_plain
from tinyfusion.states import States, cat_states, map_streams, split_states

Kept = tuple[int, ...]
"""Blocks that a choice keeps, ascending."""


def tree_nodes(kept_sets: Sequence[Kept]) -> int:
    """Number of different beginnings of some choices: the blocks that scoring them has to run."""
    ascending = sorted(kept_sets)
    shared = sum(common_start(kept, [following]) for kept, following in pairwise(ascending))
    return sum(map(len, ascending)) - shared


def common_start(kept: Kept, others: Sequence[Kept]) -> int:
    """Number of leading blocks that ``kept`` has in common with any of ``others``."""
    most = 0
    for other in others:
        while kept[: most + 1] == other[: most + 1] and most < min(len(kept), len(other)):
            most += 1
    return most


class TreePlan:
    """Which nodes of the tree a step runs, block by block.

    Args:
        net: the network.
        kept_sets: the step's candidates.
        known: nodes whose states are there from the step before.
        wanted: number of leading blocks of the last candidate whose nodes the next step needs.

    Attributes:
        entries: blocks before which hidden states come from code of the forward.
        exits: blocks behind which such code takes hidden states over.
        nodes: per block, its nodes: the prefix, and the numbers of the candidates that share it.
        carried: nodes whose states the next step needs.
        new_nodes: number of nodes that are not known.
    """

    def __init__(
        self, net: Backbone, kept_sets: Sequence[Kept], known: set[Kept], wanted: int
    ) -> None:
        depth = net.depth
        self.kept_sets = kept_sets
        self.entries = {0, *net.borders}
        self.exits = {border - 1 for border in (*net.borders, depth)}
        self.nodes: list[dict[Kept, list[int]]] = [{} for _ in range(depth)]
        for number, kept in enumerate(kept_sets):
            for length, index in enumerate(kept, start=1):
                self.nodes[index].setdefault(kept[:length], []).append(number)
        self.carried = {kept_sets[-1][:length] for length in range(1, wanted + 1)}
        self.new_nodes = sum(prefix not in known for nodes in self.nodes for prefix in nodes)


class Walk:
    """The block runner of one step.

    Args:
        plan: what to run.
        size: samples of each candidate.
        rows: samples per call of a block, at most.
        carried: states of known nodes; replaced by those that the next step needs.
        condition_rows: see `Backbone.condition_rows`.
    """

    def __init__(
        self,
        plan: TreePlan,
        size: int,
        rows: int,
        carried: dict[Kept, States],
        condition_rows: Callable[[Any, slice], Any],
    ) -> None:
        self.plan, self.size, self.condition_rows = plan, size, condition_rows
        self.per_call = max(1, rows // size)
        self.carried = carried
        # Hidden states of every candidate so far; those that none needs any more are freed.
        self.current: list[States] = []

    def __call__(self, index: int, block: nn.Module, states: States, condition: Any) -> States:
        """Run the block on its new nodes; see `BlockRunner`.

        What comes in and what is returned matters only where the forward has a part in it: at
        the ends of stacks.
        """
        if index in self.plan.entries:
            self.current = split_states(states, self.size)
        nodes = self.plan.nodes[index]
        new = [prefix for prefix in nodes if prefix not in self.carried]
        done = {prefix: self.carried[prefix] for prefix in nodes if prefix in self.carried}
        for first in range(0, len(new), self.per_call):
            some = new[first : first + self.per_call]
            parents = [self.current[nodes[prefix][0]] for prefix in some]
            rows = len(some) * self.size
            out = run_plain(
                index,
                block,
                parents[0] if len(some) == 1 else cat_states(parents),
                self.condition_rows(condition, slice(rows)),
            )
            done |= zip(some, split_states(out, self.size), strict=True)
        for prefix, numbers in nodes.items():
            for number in numbers:
                self.current[number] = done[prefix]
            if prefix not in self.plan.carried:
                self.carried.pop(prefix, None)
            elif prefix not in self.carried:
                # A copy, so that the other nodes of the call need not stay.
                self.carried[prefix] = map_streams(torch.clone, done[prefix])
        return cat_states(self.current) if index in self.plan.exits else states
