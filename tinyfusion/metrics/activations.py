"""Massive activations (TinyFusion, section 4.4 and Figure 8): one pass over noised images.

What is kept of the states does not grow with the number of images, and whole states are kept no
longer than masked distillation itself keeps them: the teacher's, of the blocks that are compared,
for one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import (
    Backbone,
    BlockRunner,
    evaluating,
    predict,
    run_plain,
)
from tinyfusion.conditioning import Conditioning
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.metrics.state_summary import PairSummary, StateSummary, merged, summarise
from tinyfusion.processes.contract import Process
from tinyfusion.seeding import FixedDraws, permutation
from tinyfusion.states import States

PART = 128
"""Most images that are noised together; their times are spread evenly over the schedule."""


@dataclass(frozen=True)
class Collected:
    """What one pass found.

    Attributes:
        student: figures of the states after each block.
        teacher: the same of the teacher; empty without one.
        pairs: what distillation would see of the aligned blocks.
    """

    student: list[StateSummary]
    teacher: list[StateSummary]
    pairs: list[PairSummary]


def check_request(
    source: ImageSource, samples: int, batch_size: int, num_sigmas: Sequence[float]
) -> None:
    """Refuse a pass that can't be made.

    Raises:
        InputError: no samples or more than there are training images, an empty batch, or no
            threshold, one that is not positive or one that is given twice.
    """
    if samples < 1:
        raise InputError(f"samples={samples} must be at least 1")
    if samples > len(source):
        raise InputError(
            f"samples={samples}: the data has {len(source)} training images; give "
            f"samples={len(source)} or fewer"
        )
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
    given = f"num_sigmas=[{','.join(f'{k:g}' for k in num_sigmas)}]"
    if not num_sigmas:
        raise InputError(f"{given} names no threshold; give at least one, such as [2]")
    for k in num_sigmas:
        if not 0 < k < float("inf"):
            raise InputError(f"{given}: {k:g} is no number of deviations; valid: above 0")
    if len({f"{k:g}" for k in num_sigmas}) < len(num_sigmas):
        raise InputError(f"{given} names a threshold twice; give each once")


def collect(
    student: Backbone,
    process: Process,
    source: ImageSource,
    samples: int,
    num_sigmas: Sequence[float],
    teacher: Backbone | None = None,
    pairs: Sequence[tuple[int, int]] = (),
    batch_size: int = 64,
    seed: int = 0,
    on_images: Callable[[float], None] | None = None,
) -> Collected:
    """Run one or two networks once over the same noised images and describe their states.

    Images and noise depend neither on ``batch_size`` nor on the networks. States are in float32.

    Args:
        student: the network, or the one that is compared with a teacher.
        process: makes the inputs, at times that cover its range.
        source: training images; their conditioning is kept as it is, never dropped.
        samples: noised images, each another one, 1..len(source).
        num_sigmas: thresholds of masked distillation, in standard deviations.
        teacher: a second network, on the student's device.
        pairs: aligned (student block, teacher block).
        batch_size: images per forward.
        seed: gives images and noise.
        on_images: told after each batch how many images it had.

    Raises:
        InputError: see `check_request`; or paired blocks whose states differ in shape.
    """
    check_request(source, samples, batch_size, num_sigmas)
    thresholds = tuple(num_sigmas)
    students = _Summaries(student.depth, thresholds)
    teachers = _Summaries(0 if teacher is None else teacher.depth, thresholds)
    found = [PairSummary(a, b, thresholds) for a, b in pairs]
    wanted = {b for _, b in pairs}
    held: dict[int, States] = {}

    def hold(block: int, states: States) -> None:
        if block in wanted:
            held[block] = states

    def compare(block: int, states: States) -> None:
        for pair in found:
            if pair.student == block:
                pair.add(states, held[pair.teacher])

    device = next(student.parameters()).device
    with (
        torch.no_grad(),
        evaluating(student),
        evaluating(student if teacher is None else teacher),
    ):
        for inputs, conditioning in noised_batches(process, source, samples, batch_size, seed):
            seen = [value.to(device) for value in inputs], conditioning.to(device)
            if teacher is not None:
                predict(teacher, *seen, teachers.runner(hold))
            predict(student, *seen, students.runner(compare))
            held.clear()
            if on_images is not None:
                on_images(len(conditioning))
    return Collected(students.all(), teachers.all(), found)


def over_all_blocks(summaries: Sequence[StateSummary]) -> StateSummary:
    """Figures of the states after all blocks of a network together."""
    return reduce(merged, summaries)


def noised_batches(
    process: Process, source: ImageSource, samples: int, batch_size: int, seed: int
) -> Iterator[tuple[list[Tensor], Conditioning]]:
    """What a network takes, inputs and conditioning, on the CPU; no more than a part at a time.

    Args:
        process: makes the inputs.
        source: training images, taken in a seeded order.
        samples: how many of them.
        batch_size: images per batch; the last one of a part may be smaller.
        seed: gives order and noise.
    """
    order = permutation(seed, 0, len(source))[:samples]
    # As many parts as the process needs for draws that the samples of a part share.
    size = min(PART, -(-samples // process.strata))
    for first in range(0, samples, size):
        images, conditioning = source.plain(order[first : first + size])
        middle = (first + len(images) / 2) / samples
        # Parts together cover evenly what the samples of one part share.
        fixed = FixedDraws(len(images), seed, "activations", first)
        draws = fixed.part(slice(0, len(images)), middle)
        inputs = process.corrupt(images, draws).inputs
        for row in range(0, len(conditioning), batch_size):
            rows = slice(row, row + batch_size)
            yield [value[rows] for value in inputs], conditioning[rows]


class _Summaries:
    """One running summary for each block of a network."""

    def __init__(self, depth: int, num_sigmas: tuple[float, ...]) -> None:
        self._num_sigmas = num_sigmas
        self._found: list[StateSummary | None] = [None] * depth

    def runner(self, then: Callable[[int, States], None]) -> BlockRunner:
        """Runs blocks, adds their states and hands them on to ``then(block, states)``."""

        def run(index: int, block: nn.Module, states: States, condition: Any) -> States:
            out = run_plain(index, block, states, condition)
            new, before = summarise(out, self._num_sigmas), self._found[index]
            self._found[index] = new if before is None else merged(before, new)
            then(index, out)
            return out

        return run

    def all(self) -> list[StateSummary]:
        return [summary for summary in self._found if summary is not None]
