"""Blocks that are removed during recovery, one after the other, instead of all before it.

Pruning a little, training a little is the schedule of Adapt-Pruner (arXiv 2502.03460); here it
removes blocks (or branches of blocks). Which ones go is known beforehand: nothing is scored again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyfusion.backbones.branches import Branch
from tinyfusion.backbones.contract import Backbone, BlockRunner, run_plain
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.recovery.alignment import alignment
from tinyfusion.states import States, map_streams
from tinyfusion.units import BLOCKS, BRANCHES, Unit

NO_DECISION = (
    "stages=fade_out removes blocks during recovery: give the whole model as checkpoint= with "
    "decision=PATH, or stages=none for a model that is already cut"
)


@dataclass(frozen=True)
class Fading:
    """Which units go at which step of a training.

    Attributes:
        decision: what stays in the end.
        units: the blocks and branches that go, in this order.
        steps: for each of them the first step that runs without it, ascending.
        window: steps before it over which the unit fades, at least 1; with 1 it does not.
    """

    decision: Decision
    units: tuple[Unit, ...]
    steps: tuple[int, ...]
    window: int

    def gamma(self, number: int, step: int) -> float:
        """How much of a unit is left at a step: 1, falling linearly over the window, and 0.

        Args:
            number: number of the unit in ``units``.
            step: optimiser steps so far.
        """
        return min(1.0, max(0.0, (self.steps[number] - step) / self.window))

    def run_block(self, net: Backbone, step: int) -> BlockRunner:
        """Run the network as it is at a step: ``h + gamma (B(h) - h)`` for units that go.

        At a gamma of exactly 0 a unit is not run, at one of exactly 1 it is run as it is.

        Args:
            net: the whole network.
            step: optimiser steps so far.
        """
        left = [self.gamma(number, step) for number in range(len(self.units))]

        def run_faded(number: int, unit: Branch, states: States, condition: Any) -> States:
            gamma = left[number]
            if gamma == 0:
                return states
            out = run_plain(number, unit, states, condition)
            return out if gamma == 1 else map_streams(lambda a, b: b + gamma * (a - b), out, states)

        return net.run_units(self.units, run_faded)

    def gone(self, step: int) -> tuple[int, ...]:
        """Indices of the blocks that no longer run at a step."""
        return tuple(
            unit.index
            for unit, last in zip(self.units, self.steps, strict=True)
            if unit.kind == BLOCKS and unit.index is not None and step >= last
        )

    def places(
        self, pairs: Sequence[tuple[int, int]], net: Backbone, teacher_depth: int
    ) -> tuple[int, ...]:
        """The blocks of the whole network after which to look at the states that are compared.

        The states after a block of the finished student are those after any of the removed ones
        that follow it. Of these the teacher's own block is taken where the teacher is as deep as
        the whole network, so that both are alike at the start; else the last one.

        Args:
            pairs: pairs of (block of the finished student, block of the teacher).
            net: the whole network.
            teacher_depth: number of blocks of the teacher.
        """
        if not self.decision.is_about_blocks:
            return tuple(student for student, _ in pairs)
        origins = self.decision.origins
        last = dict(alignment(origins, net.depth, None, net.borders))
        return tuple(
            b if net.depth == teacher_depth and origins[a] <= b <= last[a] else last[a]
            for a, b in pairs
        )

    def summary(self) -> str:
        """One line for the log: what goes when, the first ones and the last by name."""
        listed = [
            f"{unit.name} at step {step:,}"
            for unit, step in zip(self.units, self.steps, strict=True)
        ]
        shown = listed if len(listed) <= 4 else [*listed[:2], "...", listed[-1]]
        fades = f"faded over {self.window:,} steps" if self.window > 1 else "not faded"
        return (
            f"{len(self.units)} unit(s) are removed during training, each {fades}: "
            f"{', '.join(shown)}"
        )

    def record(self) -> dict[str, Any]:
        """What the student's provenance says of it, as plain data."""
        order = [unit.name for unit in self.units]
        return {"order": order, "steps": list(self.steps), "window": self.window}


class FadeOut:
    """Begin with the whole network and remove what goes during the first part of training.

    The removals are spread evenly over the first ``share`` of all steps. Before its removal a unit
    is run as ``h + gamma (B(h) - h)`` with gamma from 1 to 0. Learning rate, random draws and the
    optimiser's moments of all that stays continue as if nothing had happened.

    Units go in the order in which the pruner's evidence lists them (``order``, the least important
    first), otherwise the last one of the network first.

    Source: Adapt-Pruner (arXiv 2502.03460) prunes in many small steps under one schedule; how the
    steps are spread, and fading, are ours.

    Args:
        share: share of all steps after which the last unit is gone, 0 < share < 1.
        window: share of the steps between two removals over which a unit fades, 0 to 1; with 0 it
            goes at once.
        at_once: units that go together.

    Raises:
        InputError: a value out of range.
    """

    def __init__(self, share: float = 0.5, window: float = 1.0, at_once: int = 1) -> None:
        if not 0 < share < 1:
            raise InputError(
                f"recovery.stages.share={share} must be more than 0 and less than 1, such as 0.5"
            )
        if not 0 <= window <= 1:
            raise InputError(f"recovery.stages.window={window} must be from 0 to 1")
        if at_once < 1:
            raise InputError(f"recovery.stages.at_once={at_once} must be at least 1")
        self.share, self.window, self.at_once = share, window, at_once

    def check(self, net: Backbone, total_steps: int) -> None:
        """Validate the settings before there is a decision.

        Args:
            net: the model that is cut.
            total_steps: steps of the recovery.

        Raises:
            InputError: too few steps.
        """
        if total_steps < 2:
            raise InputError(
                f"training.recovery.steps={total_steps} leaves no step after the removals of "
                "stages=fade_out; give at least 2, or stages=none"
            )

    def fading(self, net: Backbone, decision: Decision | None, total_steps: int) -> Fading:
        """Which units go at which step.

        Args:
            net: the whole network.
            decision: what stays in the end.
            total_steps: steps of the recovery.

        Raises:
            InputError: no decision, one about another network or about widths, one that removes
                nothing, or too few steps.
        """
        self.check(net, total_steps)
        if decision is None:
            raise InputError(NO_DECISION)
        if decision.source_depth not in (None, net.depth):
            raise InputError(
                f"stages=fade_out begins with the whole model: the decision was made for one of "
                f"{decision.source_depth} blocks, this one has {net.depth}"
            )
        if decision.resized is not None:
            raise InputError(
                "stages=fade_out removes blocks, but the decision cuts widths; give stages=none"
            )
        units = _in_order(net, decision)
        if not units:
            raise InputError("stages=fade_out: the decision removes nothing; give stages=none")
        span = self.share * total_steps
        rounds = -(-len(units) // self.at_once)
        steps = [
            min(max(round(span * (number // self.at_once + 1) / rounds), 1), total_steps - 1)
            for number in range(len(units))
        ]
        window = min(max(1, round(self.window * span / rounds)), steps[0])
        return Fading(decision, units, tuple(steps), window)


def _in_order(net: Backbone, decision: Decision) -> tuple[Unit, ...]:
    """The units that go, the first one to go first."""
    stay = decision.origins if decision.is_about_blocks else range(net.depth)
    gone = [unit for unit in net.units() if unit.index not in stay]
    if decision.removed:
        gone += [unit for unit in net.units(BRANCHES) if unit.name in decision.removed]
    listed = decision.scores.get("order")
    scored = net.units(decision.budget.get("units", BLOCKS))
    numbers = range(len(scored))
    if isinstance(listed, list) and all(type(n) is int and n in numbers for n in listed):
        # A block whose branches were listed goes with the last of them.
        names = {scored[number].name: place for place, number in enumerate(listed)}
        blocks = {scored[number].index: place for place, number in enumerate(listed)}
        found = [
            blocks.get(unit.index) if unit.kind == BLOCKS else names.get(unit.name) for unit in gone
        ]
        known = [place for place in found if place is not None]
        if len(known) == len(gone):
            return tuple(gone[i] for i in sorted(range(len(gone)), key=known.__getitem__))
    # The last one to run goes first.
    return tuple(sorted(reversed(gone), key=lambda unit: -(unit.index or 0)))
