"""Which blocks `tinyfusion recover` aligns, with and without a decision file."""

import pytest

from tinyfusion.backbones.contract import forward_with_states
from tinyfusion.backbones.coupling import coupling
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.changes import Resizing
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.recovery.origins import aligned_pairs, seams_of
from tinyfusion.surgery import prune


def net_of(depth):
    return DiT(4, 2, 1, hidden_size=8, depth=depth, num_heads=2, num_classes=3)


def test_groups_of_the_decision_are_used():
    teacher = net_of(8)
    decision = Decision((0, 2, 5, 7), 8, scheme=[[1, 2]] * 4)
    pairs = aligned_pairs(prune(teacher, decision), teacher, decision)
    assert pairs == [(0, 1), (1, 3), (2, 5), (3, 7)]


def test_without_a_decision_the_students_own_record_is_used():
    teacher = net_of(8)
    assert aligned_pairs(prune(teacher, [0, 3, 4]), teacher, None) == [(0, 2), (1, 3), (2, 7)]


def test_a_pruned_teacher_is_aligned_by_its_own_places():
    middle = prune(net_of(8), [0, 2, 4, 6])
    student = prune(middle, [0, 2])
    assert student.kept_from == (0, 4)
    assert aligned_pairs(student, middle, None) == [(0, 1), (1, 3)]


def test_a_teacher_that_is_no_ancestor_is_aligned_by_the_first_model():
    first = net_of(8)
    teacher = prune(first, [1, 3, 4, 6])
    # Block 0 stands for 0 alone, before all of the teacher's; 2 for 2..4; 5 for 5..7.
    pairs = [(1, 0), (2, 2), (3, 3)]
    assert aligned_pairs(prune(first, [0, 1, 2, 5]), teacher, None) == pairs
    decision = Decision((0, 5), 8, scheme=[[1, 4], [1, 4]])
    assert aligned_pairs(prune(first, decision), teacher, decision) == [(0, 1), (1, 3)]
    # The published way: D7 of the first model, 14 of whose 28 blocks are its teacher.
    first = net_of(28)
    teacher, decision = prune(first, range(0, 28, 2)), Decision(range(0, 28, 4), 28)
    pairs = [(i, 2 * i + 1) for i in range(7)]
    assert aligned_pairs(prune(first, decision), teacher, decision) == pairs
    # A decision about a model of the teacher's depth that is not the teacher.
    other = prune(first, range(1, 28, 2))
    decision = Decision((0, 7), 14, scheme=[[1, 7], [1, 7]])
    assert aligned_pairs(prune(other, decision), other, decision) == [(0, 6), (1, 13)]
    assert aligned_pairs(prune(other, decision), teacher, decision) == [(0, 7), (1, 13)]


def test_unknown_origin_is_refused():
    with pytest.raises(InputError, match="can't be aligned with this teacher of 8"):
        aligned_pairs(net_of(4), net_of(8), None)
    with pytest.raises(InputError, match="give decision=PATH"):
        aligned_pairs(prune(net_of(9), [0, 8]), net_of(8), None)
    with pytest.raises(InputError, match="give decision=PATH"):
        aligned_pairs(net_of(4), prune(net_of(8), [0, 2]), None)


SMALL = {"num_heads": 2, "in_channels": 1, "num_classes": 3, "buffer_size": 2}
SMALL |= {"head_depth": 1, "head_width": 8}


def test_stacks_of_another_size_are_another_origin():
    def mar(encoder, decoder):
        return MAR(4, 8, encoder, decoder, **SMALL)

    student, teacher = prune(mar(3, 4), [0, 5]), prune(mar(4, 3), [0, 2, 5])
    with pytest.raises(InputError, match="can't be aligned"):
        aligned_pairs(student, teacher, None)
    # Student block 1 stands for the whole decoder; the teacher's begins behind block 3.
    student = prune(mar(4, 3), [1, 4, 6])
    assert aligned_pairs(student, teacher, None) == [(0, 1), (1, 2), (2, 2)]
    late = prune(mar(4, 3), [0, 2, 6])
    assert aligned_pairs(student, late, None) == [(0, 1), (2, 2)]


@pytest.mark.parametrize("decided", [True, False])
def test_compared_states_of_two_stacks_have_the_same_shapes(decided):
    teacher = MAR(4, 8, 4, 3, **SMALL).eval()
    decision = Decision((0, 2, 6), 7)
    student = prune(teacher, decision)
    pairs = aligned_pairs(student, teacher, decision if decided else None)
    assert pairs == [(0, 1), (1, 3), (2, 6)]
    seen = teacher.example_inputs(2)[:-1], teacher.example_conditioning(2)
    mine = forward_with_states(student, *seen, range(3))[1]
    theirs = forward_with_states(teacher, *seen, range(7))[1]
    assert all(mine[a].shape == theirs[b].shape for a, b in pairs)


def test_seams_by_the_decision_or_by_what_files_record():
    source = net_of(8)
    middle = prune(source, [0, 1, 2, 4, 5, 6])
    assert seams_of(middle, source, Decision((0, 1, 2, 4, 5, 6), 8)) == (2, 3, 5)
    assert seams_of(middle, source, None) == (2, 3, 5)
    # What is missing at the end only the teacher can tell; of what it lacks itself it says nothing.
    assert seams_of(middle, None, None) == (2, 3)
    assert seams_of(prune(middle, [0, 1, 3, 4, 5]), middle, None) == (1, 2)
    assert seams_of(source, source, None) == ()
    found = coupling(source)
    kept = {name: tuple(range(units)) for name, units in found.units.items()}
    resized = Resizing(kept, found.units, found.widths, found.widths, 1, 1)
    assert seams_of(middle, source, Decision(resized=resized)) == ()
