"""The rounds of ``iterative=`` in a dry run: each is the dry run of a command of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tinyfusion.commands.dry_command import DryCommand, arguments_of
from tinyfusion.commands.iterative import round_objects
from tinyfusion.pipeline.rounds import PREVIOUS


def dry_rounds(dry: DryCommand) -> Iterator[tuple[str, DryCommand]]:
    """Every round that a command would make, with its title; the command itself if it has none.

    Args:
        dry: the command.

    Raises:
        InputError: rounds that can't be.
    """
    objects, rounds = dry.objects, dry.objects.rounds
    if rounds is None:
        yield "", dry
        return
    source = dry.arguments
    assert objects.pruner is not None and objects.recovery is not None
    rounds.check(
        dry.on_meta(source).depth,
        objects.checkpoint,
        objects.wanted,
        objects.decision_path,
        objects.start,
        objects.teacher_path,
        objects.pruner,
    )

    def round_of(depth: int, number: int | None, begins: dict[str, Any]) -> DryCommand:
        own = round_objects(objects, str(objects.checkpoint), depth, number)
        if number is not None:
            own = replace(own, evaluation=None)  # of earlier rounds only the result is scored
        origin = dry.origin if begins is source else "by the rounds"
        return replace(dry, objects=own, arguments=begins, origin=origin)

    distils = objects.recovery.uses_teacher and objects.teacher_path is not None
    count = len(rounds.depths)
    previous: dict[str, Any] | None = None
    if rounds.needs_previous(distils):
        if rounds.previous is not None:
            previous = arguments_of(objects, rounds.previous, "iterative.previous")
        if previous is None:
            previous = source
            for number, depth in enumerate(rounds.depths[:-1], 1):
                own = round_of(depth, number, previous)
                if rounds.previous is None:
                    yield f"round {number} of {count}", own
                previous = own.student
    begins, other = source, previous
    if rounds.weights == PREVIOUS:
        assert previous is not None
        begins, other = previous, source
    teacher = previous if rounds.teacher == PREVIOUS else source
    last = round_of(rounds.depths[-1], None, begins)
    yield (
        f"round {count} of {count}",
        replace(
            last,
            teacher=teacher if distils else None,
            earlier=() if other is None else (other,),
        ),
    )
