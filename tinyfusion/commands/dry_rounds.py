"""The rounds of ``iterative=`` in a dry run: each is the dry run of a job of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinyfusion.commands.dry_setup import DrySetup
from tinyfusion.commands.iterative import PREVIOUS, check_settings, needs_previous, round_cfg
from tinyfusion.settings.compose import build


def dry_rounds(setup: DrySetup) -> Iterator[tuple[str, DrySetup]]:
    """Every round that a job would make, with its title; the job itself if it has no rounds.

    Args:
        setup: the job.

    Raises:
        InputError: rounds that can't be.
    """
    cfg = setup.cfg
    if cfg.get("iterative") is None:
        yield "", setup
        return
    source = setup.arguments
    check_settings(cfg, setup.on_meta(source).depth)
    distils = build(cfg.recovery).uses_teacher and cfg.teacher.path is not None
    depths, given = list(cfg.iterative.depths), cfg.iterative.previous
    previous: dict[str, Any] | None = None
    if needs_previous(cfg, distils):
        if given is not None:
            previous = setup.arguments_of(given, "iterative.previous")
        if previous is None:
            previous = source
            for number, depth in enumerate(depths[:-1], 1):
                own_cfg = round_cfg(cfg, cfg.checkpoint, depth, number)
                own = DrySetup(own_cfg, None if previous is source else previous)
                own.cfg.evaluation = None  # of earlier rounds only the result is scored, at the end
                if given is None:
                    yield f"round {number} of {len(depths)}", own
                previous = own.student_arguments(own.decision())
    node = cfg.iterative
    begins, other = source, previous
    if node.weights == PREVIOUS:
        begins, other = previous, source
    teacher = previous if node.teacher == PREVIOUS else source
    yield (
        f"round {len(depths)} of {len(depths)}",
        DrySetup(
            round_cfg(cfg, cfg.checkpoint, depths[-1], None),
            None if begins is source else begins,
            teacher if distils else None,
            [] if other is None else [other],
        ),
    )
