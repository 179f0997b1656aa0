"""The rounds of ``iterative=`` in folders: each is a run of its own, except for the last one.

Rounds before the last one lie in ``round_1/`` and so on, with the files of a run each; the last one
is the run itself. All rounds have the run's seed and settings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tinyfusion.backbones.contract import Backbone
from tinyfusion.checkpoints import load as load_model
from tinyfusion.commands.loading import check_loaded, load, ranks_of, runner_of, start_tracking
from tinyfusion.commands.prune import decide
from tinyfusion.commands.recover import RECOVERED, first_student, recover_into
from tinyfusion.pipeline.rounds import PREVIOUS, SOURCE, check_previous
from tinyfusion.settings.objects import Objects

log = logging.getLogger(__name__)


class LastRound(NamedTuple):
    """What the last round begins with.

    Attributes:
        objects: the command's, with the round's checkpoint and number of blocks.
        net: the model that it cuts.
        teacher: the network that it distils from, if any.
        earlier: recovered models of the rounds before, by the name they have in tables.
    """

    objects: Objects
    net: Backbone
    teacher: Backbone | None
    earlier: dict[str, Backbone]


def round_objects(objects: Objects, checkpoint: str, depth: int, number: int | None) -> Objects:
    """Objects of one round: those of a run of its own.

    Args:
        objects: those of the whole.
        checkpoint: what the round cuts.
        depth: blocks that it leaves.
        number: of the round, from 1; ``None`` for the last one, which keeps the run's name.
    """
    config = objects.config | {"checkpoint": checkpoint, "keep": depth}
    name = objects.name
    if number is not None:
        name = None if name is None else f"{name}_round_{number}"
        config |= {"iterative": None, "name": name}
    return replace(
        objects,
        checkpoint=checkpoint,
        wanted=replace(objects.wanted, keep=depth),
        name=name,
        config=config,
        make_source=lambda: objects.source,
    )


def check_rounds(objects: Objects, source: Backbone) -> Backbone | None:
    """Refuse whatever a later round would refuse, before the first one.

    Args:
        objects: the command's, with rounds.
        source: the first model.

    Returns:
        The model of ``iterative.previous``, if it is given.

    Raises:
        InputError: see `Rounds.check` and `check_previous`, or a number of blocks that the pruner
            can't keep.
    """
    rounds, pruner = objects.rounds, objects.pruner
    assert rounds is not None and pruner is not None
    rounds.check(
        source.depth,
        objects.checkpoint,
        objects.wanted,
        objects.decision_path,
        objects.start,
        objects.teacher_path,
        pruner,
    )
    previous = None
    if rounds.previous is not None:
        previous = load(objects, rounds.previous, key="iterative.previous")
        check_previous(rounds.previous, previous, source, rounds.depths[-2])
    rounds.check_budgets(source, pruner, objects.wanted)
    if previous is not None:
        check_loaded(objects, previous, rounds.previous, key="iterative.previous")
    return previous


def earlier_rounds(
    objects: Objects,
    source: Backbone,
    teacher: Backbone | None,
    previous: Backbone | None,
    folder: Path,
) -> LastRound:
    """Make the rounds before the last one that it needs; finished ones are not repeated.

    Args:
        objects: the command's, with rounds.
        source: the first model; left as it is.
        teacher: the same if the recovery needs a teacher, else ``None``.
        previous: what `check_rounds` gave.
        folder: the run's folder.
    """
    rounds = objects.rounds
    assert rounds is not None and objects.checkpoint is not None
    net, path = source, objects.checkpoint
    earlier: dict[str, Backbone] = {}
    if not rounds.needs_previous(teacher is not None):
        log.info("iterative: the last round needs none before it: 1 round")
    elif previous is not None:
        assert rounds.previous is not None
        net, path = previous, rounds.previous
        earlier["previous"] = previous
    else:
        count = len(rounds.depths)
        for number, depth in enumerate(rounds.depths[:-1], 1):
            own_folder = folder / f"round_{number}"
            log.info(
                "iterative: round %d of %d: %d -> %d blocks in %s",
                *(number, count, net.depth, depth, own_folder),
            )
            own = round_objects(objects, path, depth, number)
            net, path = (
                _made(own, net, teacher is not None, own_folder),
                str(own_folder / RECOVERED),
            )
            earlier[f"round {number}"] = net
        log.info("iterative: round %d of %d: the last one", count, count)
    choice = {PREVIOUS: (net, path), SOURCE: (source, objects.checkpoint)}
    start, checkpoint = choice[rounds.weights]
    return LastRound(
        round_objects(objects, checkpoint, rounds.depths[-1], None),
        start,
        None if teacher is None else choice[rounds.teacher][0],
        earlier,
    )


def _made(objects: Objects, net: Backbone, distils: bool, folder: Path) -> Backbone:
    """One round: the recovered model that it leaves on every rank."""
    tracking = start_tracking(objects, folder)
    runner = runner_of(objects, tracking)
    decision = decide(objects, net, runner, folder)
    with _left_trainable(net):
        student = first_student(objects, net, decision)
        recover_into(folder, objects, runner, student, net if distils else None, decision)
    tracking.finish()
    ranks_of(objects).barrier()  # the first rank is writing what all will read
    return load_model(str(folder / RECOVERED))


@contextmanager
def _left_trainable(net: Backbone) -> Iterator[None]:
    """Undo that a network was frozen to be a teacher: a later round may cut it."""
    trained = [parameter.requires_grad for parameter in net.parameters()]
    try:
        yield
    finally:
        for parameter, trains in zip(net.parameters(), trained, strict=True):
            parameter.requires_grad_(trains)
