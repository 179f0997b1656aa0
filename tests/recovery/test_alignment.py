"""Pairs of student and teacher blocks."""

from __future__ import annotations

import pytest

from tinyfusion.errors import InputError
from tinyfusion.recovery.alignment import alignment
from tinyfusion.scheme import parse_scheme

D19 = [[3, 4], [3, 4], [2, 4], [3, 4], [2, 4], [3, 4], [3, 4]]


@pytest.mark.parametrize("offset", [0, 1])
def test_one_of_two_pairs_every_block_with_the_end_of_its_group(offset: int) -> None:
    pairs = alignment(range(offset, 28, 2), 28, parse_scheme("1:2", 28))
    assert pairs == [(i, 2 * i + 1) for i in range(14)]


def test_seven_blocks_of_a_fourteen_block_teacher() -> None:
    pairs = alignment(range(0, 14, 2), 14, parse_scheme("1:2", 14))
    assert pairs == [(i, 2 * i + 1) for i in range(7)]


def test_the_nineteen_block_student_gets_the_published_pairs() -> None:
    scheme = parse_scheme(D19, 28)
    kept = [group.start + i for group in scheme.groups for i in group.choices()[-1]]
    assert len(kept) == 19
    expected = [(2, 3), (5, 7), (7, 11), (10, 15), (12, 19), (15, 23), (18, 27)]
    assert alignment(kept, 28, scheme) == expected


def test_number_of_pairs_is_the_number_of_groups() -> None:
    for text, count in (("1:2", 14), ("2:4", 7), ("7:14", 2)):
        scheme = parse_scheme(text, 28)
        kept = [group.start + i for group in scheme.groups for i in group.choices()[0]]
        pairs = alignment(kept, 28, scheme)
        assert len(pairs) == count
        assert [teacher for _, teacher in pairs] == [group.blocks[-1] for group in scheme.groups]


def test_without_groups_the_teacher_is_cut_at_the_kept_blocks() -> None:
    assert alignment([0, 3, 4, 9], 12) == [(0, 2), (1, 3), (2, 8), (3, 11)]
    assert alignment([2], 5) == [(0, 4)]


def test_pairs_stay_within_a_stack() -> None:
    assert alignment([0, 3, 7, 9], 12, borders=[6]) == [(0, 2), (1, 5), (2, 8), (3, 11)]
    assert alignment([1, 6, 8], 12, borders=[6]) == [(0, 5), (1, 7), (2, 11)]
    assert alignment([7], 12, borders=[6]) == [(0, 11)] and alignment([2], 12, None, [6]) == [
        (0, 5)
    ]
    assert (
        alignment([0, 3], 4, borders=[0]) == alignment([0, 3], 4, borders=[4]) == [(0, 2), (1, 3)]
    )


def test_indices_and_groups_must_fit_the_teacher() -> None:
    with pytest.raises(InputError, match=r"block 28 does not exist; the model has blocks 0\.\.27"):
        alignment([0, 28], 28)
    with pytest.raises(InputError, match="scheme=1:2 covers 14 blocks but the teacher has 28"):
        alignment([0, 2], 28, parse_scheme("1:2", 14))
