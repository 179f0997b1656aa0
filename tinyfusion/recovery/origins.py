"""Where a student's blocks come from: which are paired with a teacher's, which lost a neighbour."""

from __future__ import annotations

from tinyfusion.backbones.contract import Backbone
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.recovery.alignment import alignment, alignment_by_origin
from tinyfusion.recovery.stages import seams


def seams_of(
    student: Backbone, teacher: Backbone | None, decision: Decision | None
) -> tuple[int, ...]:
    """Blocks of the student next to which blocks were removed.

    By the decision; without one by the places that the student's file records, in the teacher if
    it was cut from that one. A removal after the last block is known by decision and teacher only.
    """
    if decision is not None:
        # Any other leaves all blocks where they were.
        about_blocks = decision.is_about_blocks
        return seams(decision.origins, decision.source_depth) if about_blocks else ()
    kept = student.kept_from
    if kept is None:
        return ()
    if teacher is not None:
        origin = list(teacher.kept_from or range(teacher.depth))
        if set(kept) <= set(origin):
            return seams([origin.index(block) for block in kept], len(origin))
    return seams(kept, None)


def aligned_pairs(
    student: Backbone, teacher: Backbone, decision: Decision | None
) -> list[tuple[int, int]]:
    """Pairs (student block, teacher block) whose hidden states are compared.

    Args:
        student: the pruned network.
        teacher: the network to distil from.
        decision: how the student was cut from the teacher; without it the records of both
            networks are used.

    Raises:
        InputError: it is not known which of the teacher's blocks the student kept.
    """
    if decision is not None and not decision.is_about_blocks:
        decision = None
    kept, origin = student.kept_from, teacher.kept_from
    if decision is not None and decision.source_depth == teacher.depth:
        chosen = None if origin is None else tuple(origin[block] for block in decision.origins)
        # Unless the records say that the teacher is another model of the same depth.
        if kept is None or chosen is None or kept == chosen:
            return alignment(decision.origins, teacher.depth, decision.groups, teacher.borders)
    pairs = None if kept is None else _pairs_by_origin(student, kept, teacher, decision)
    if not pairs:
        raise InputError(
            f"a student of {student.depth} blocks can't be aligned with this teacher of "
            f"{teacher.depth}: it is not known which of the teacher's blocks it kept, or that both "
            "were cut from one model; give decision=PATH, or a recovery that compares no hidden "
            "states (recovery=kd)"
        )
    return pairs


def _pairs_by_origin(
    student: Backbone, kept: tuple[int, ...], teacher: Backbone, decision: Decision | None
) -> list[tuple[int, int]] | None:
    """Pairs by what both networks record of the first model; ``None`` if the records disagree."""
    origin = teacher.kept_from or tuple(range(teacher.depth))
    borders = teacher.borders if teacher.kept_from is None else teacher.source_borders
    if student.source_borders != borders:
        return None
    depth = max(kept[-1], origin[-1]) + 1
    groups = None
    if decision is not None and decision.origins == kept:  # made about the first model itself
        depth, groups = max(depth, decision.source_depth or 0), decision.groups
        if depth != decision.source_depth:
            return None
    if teacher.kept_from is None and depth != teacher.depth:
        return None
    return alignment_by_origin(kept, origin, depth, groups, borders)
