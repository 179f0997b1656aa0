"""Freeze, then unfreeze: at first only the blocks next to a removal are trained, then everything.

A removal changes the input of the block after it, and what the block before it should output:
these *seams* can adapt before the rest, which still works, is disturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyfusion.backbones.contract import Backbone
from tinyfusion.errors import InputError


def seams(kept: Sequence[int], source_depth: int | None) -> tuple[int, ...]:
    """Blocks of the student, by their new indices, next to which blocks were removed.

    Args:
        kept: the student's blocks as ascending indices into the model that was cut.
        source_depth: number of blocks of that model; ``None`` if it is not known: then the last
            block is a seam only by what is missing before it.
    """
    missing_before = [block > before + 1 for before, block in zip((-1, *kept), kept, strict=False)]
    missing_after = source_depth is not None and kept[-1] < source_depth - 1
    beside = zip(missing_before, [*missing_before[1:], missing_after], strict=True)
    return tuple(index for index, sides in enumerate(beside) if any(sides))


@dataclass(frozen=True)
class FirstStage:
    """What is trained at first, and until when.

    Attributes:
        steps: optimiser steps of the first stage.
        names: the student's parameters that are trained in it; the others keep their values.
        seams: how many of its blocks are next to a removal.
        also: parts of names that are trained besides.
    """

    steps: int
    names: frozenset[str]
    seams: int
    also: tuple[str, ...] = ()

    def summary(self, student: Backbone, warm_up: int = 0) -> str:
        """One line for the log: how many weights are trained until which step.

        Args:
            student: the pruned network.
            warm_up: steps of the learning rate's warm-up, which is repeated in the second stage.
        """
        sizes = {n: p.numel() for n, p in student.named_parameters() if p.requires_grad}
        total, trained = sum(sizes.values()), sum(sizes[name] for name in self.names)
        if self.seams == student.depth:
            what = (
                f"all {self.seams} blocks, each of which is next to a removal, but nothing outside "
                "the blocks"
            )
        else:
            what = f"the {self.seams} of {student.depth} blocks next to a removal"
        more = f", and {', '.join(self.also)}" if self.also else ""
        again = f", with another warm-up of the rate over {warm_up:,} steps" if warm_up else ""
        return (
            f"until step {self.steps:,} {trained:,} of {total:,} weights are trained: {what}{more};"
            f" then all of them{again}"
        )


class SeamsFirst:
    """Train the blocks next to a removal, then everything.

    Args:
        share: share of all steps that the first stage takes, 0 < share < 1; 0.05 to 0.2 are usual.
        also: parts of parameter names, such as ``adaLN_modulation``, that are trained in the first
            stage wherever they are.

    Raises:
        InputError: a share out of range, or an empty name.
    """

    def __init__(self, share: float = 0.1, also: Sequence[str] = ()) -> None:
        if not 0 < share < 1:
            raise InputError(
                f"recovery.stages.share={share} must be more than 0 and less than 1, such as 0.1"
            )
        if not all(isinstance(part, str) and part for part in also):
            raise InputError(
                f"recovery.stages.also={list(also)} must list parts of parameter names, such as "
                "[adaLN_modulation]"
            )
        self.share, self.also = share, tuple(also)

    def steps(self, total_steps: int) -> int:
        """Steps of the first stage; each stage has at least one.

        Raises:
            InputError: fewer than two steps.
        """
        if total_steps < 2:
            raise InputError(
                f"training.recovery.steps={total_steps} can't be divided into the two stages of "
                "stages=; give at least 2, or stages=none"
            )
        return min(max(round(self.share * total_steps), 1), total_steps - 1)

    def check(self, net: Backbone, total_steps: int) -> None:
        """Validate the settings before there is a student.

        Args:
            net: the student, or the model that it is to be cut from.
            total_steps: steps of the recovery.

        Raises:
            InputError: too few steps, or a name that no parameter has.
        """
        self.steps(total_steps)
        names = [name for name, p in net.named_parameters() if p.requires_grad]
        for part in self.also:
            if not any(part in name for name in names):
                raise InputError(
                    f"recovery.stages.also: {part!r} is part of no parameter's name; the last one "
                    f"of this model is {names[-1]!r}"
                )

    def first_stage(self, student: Backbone, at: Sequence[int], total_steps: int) -> FirstStage:
        """What is trained at first.

        Args:
            student: the pruned network.
            at: its `seams`.
            total_steps: steps of the recovery.

        Raises:
            InputError: no block is next to a removal, there are too few steps, or a name is one
                that no parameter has.
        """
        self.check(student, total_steps)
        if not at:
            raise InputError(
                "stages=seams_first trains the blocks next to a removal first, but of this model "
                "no removed block is known; give stages=none, or decision=PATH of a decision about "
                "blocks"
            )
        own = {id(p) for index in at for p in student.blocks[index].parameters()}
        names = frozenset(
            name
            for name, p in student.named_parameters()
            if p.requires_grad and (id(p) in own or any(part in name for part in self.also))
        )
        return FirstStage(self.steps(total_steps), names, len(at), self.also)
