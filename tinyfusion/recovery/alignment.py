"""Which student block is compared with which teacher block.

The reference implementation of TinyFusion pairs student block i with teacher block 2i + 1, which
fits 1:2 groups alone; here the pairs follow the decision.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from tinyfusion.decision import check_kept
from tinyfusion.errors import InputError
from tinyfusion.scheme import Scheme


def alignment(
    kept: Sequence[int],
    teacher_depth: int,
    scheme: Scheme | None = None,
    borders: Sequence[int] = (),
) -> list[tuple[int, int]]:
    """Pairs (student block, teacher block) whose outputs correspond.

    With groups, the last kept block of a group is paired with the block that closes the group.
    Without, the depth is cut at the kept blocks: each student block is paired with the teacher
    block just before the next kept one, and the last with the teacher's last. No pair crosses a
    border between stacks, whose states need not be alike: the last kept block of a stack is paired
    with the teacher's last of that stack.

    The file of a pruned model says which blocks were kept, but not in which groups: to pair along
    groups, give the decision too. Without it the pairs are those of a decision without groups; for
    1:2 groups there are as many pairs, some of them with the next teacher block.

    Args:
        kept: the student's blocks as ascending indices into the teacher.
        teacher_depth: number of blocks of the teacher.
        scheme: the groups of the decision, if it had any; they cross no border.
        borders: the teacher's `Backbone.borders`.

    Raises:
        InputError: indices that don't exist in the teacher, or groups of another depth.
    """
    kept = check_kept(kept, teacher_depth)
    if scheme is not None and scheme.depth != teacher_depth:
        raise InputError(
            f"scheme={scheme} covers {scheme.depth} blocks but the teacher has {teacher_depth}"
        )
    if scheme is None:
        starts = sorted({*kept, *borders, teacher_depth})
        return [(i, starts[bisect_right(starts, block)] - 1) for i, block in enumerate(kept)]
    pairs = []
    for group in scheme.groups:
        inside = [student for student, block in enumerate(kept) if block in group.blocks]
        if inside:
            pairs.append((inside[-1], group.blocks[-1]))
    return pairs


def alignment_by_origin(
    kept: Sequence[int],
    teacher_kept: Sequence[int],
    depth: int,
    scheme: Scheme | None = None,
    borders: Sequence[int] = (),
) -> list[tuple[int, int]]:
    """Pairs where student and teacher were both cut from one model, neither from the other.

    A student block stands for its own and the removed ones up to the next kept one, or to the end
    of its group. It is paired with the teacher block whose output is the teacher's state at that
    place: the last one at or before it. Where the student was cut from the teacher, these
    are the pairs of `alignment`.

    Args:
        kept: the student's blocks as ascending indices into the first model.
        teacher_kept: the teacher's blocks, likewise.
        depth: number of blocks of the first model; at least one more than any index.
        scheme: groups of the student's decision, if it was made about the first model.
        borders: borders of the first model. Blocks for which the teacher has no block of the same
            stack in front of that place are left out.

    Raises:
        InputError: indices that don't exist in the first model, or groups of another depth.
    """
    teacher_kept = check_kept(teacher_kept, depth, "the teacher's kept")
    pairs = []
    for student, last in alignment(kept, depth, scheme, borders):
        teacher = bisect_right(teacher_kept, last) - 1
        if teacher < 0:
            continue
        if bisect_right(borders, teacher_kept[teacher]) == bisect_right(borders, last):
            pairs.append((student, teacher))
    return pairs
