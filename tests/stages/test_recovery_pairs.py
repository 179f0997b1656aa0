"""Which blocks `tinyfusion recover` aligns, with and without a decision file."""

import pytest

from tinyfusion.backbones.contract import forward_with_states
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.stages.recover import aligned_pairs
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


def test_unknown_origin_is_refused():
    with pytest.raises(InputError, match="can't be aligned with this teacher of 8"):
        aligned_pairs(net_of(4), net_of(8), None)
    with pytest.raises(InputError, match="give decision=PATH"):
        aligned_pairs(prune(net_of(8), [0, 1]), prune(net_of(8), [0, 2]), None)


@pytest.mark.parametrize("decided", [True, False])
def test_compared_states_of_two_stacks_have_the_same_shapes(decided):
    teacher = MAR(4, 8, 4, 3, num_heads=2, in_channels=1, num_classes=3, buffer_size=2).eval()
    decision = Decision((0, 2, 6), 7)
    student = prune(teacher, decision)
    pairs = aligned_pairs(student, teacher, decision if decided else None)
    assert pairs == [(0, 1), (1, 3), (2, 6)]
    inputs = teacher.example_inputs(2)
    mine = forward_with_states(student, inputs, range(3))[1]
    theirs = forward_with_states(teacher, inputs, range(7))[1]
    assert all(mine[a].shape == theirs[b].shape for a, b in pairs)
