"""Every way of writing a scheme, and every way of getting it wrong."""

from __future__ import annotations

from math import comb

import pytest
from omegaconf import OmegaConf

from tinyfusion.errors import InputError
from tinyfusion.scheme import even_scheme, parse_scheme

MIXED = [[3, 4], [2, 4]]


@pytest.mark.parametrize(
    "text", ["1:2", " 1:2 ", "1 : 2", [[1, 2]] * 4, "[[1,2],[1,2],[1,2],[1,2]]"]
)
def test_a_ratio_and_its_list_are_the_same(text: object) -> None:
    scheme = parse_scheme(text, 8)
    assert scheme == parse_scheme("1:2", 8)
    assert str(scheme) == "1:2"
    assert (scheme.depth, scheme.keep) == (8, 4)
    assert [list(group.blocks) for group in scheme.groups] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    "value",
    [
        MIXED,
        ((3, 4), (2, 4)),
        "[[3,4],[2,4]]",
        " [ [3, 4], [2, 4] ] ",
        "[(3, 4), (2, 4)]",
        OmegaConf.create({"scheme": MIXED}).scheme,
    ],
)
def test_mixed_groups_in_every_spelling(value: object) -> None:
    scheme = parse_scheme(value, 8)
    assert scheme.sizes == MIXED
    assert str(scheme) == "[[3,4],[2,4]]"
    assert [group.start for group in scheme.groups] == [0, 4]
    assert parse_scheme(scheme.sizes, 8) == scheme
    assert parse_scheme(str(scheme), 8) == scheme


def test_a_group_of_a_list_may_keep_all_its_blocks() -> None:
    assert parse_scheme([[2, 2], [1, 2]], 4).keep == 3


@pytest.mark.parametrize(
    ("text", "groups", "logits"), [("1:2", 14, 28), ("2:4", 7, 42), ("7:14", 2, 6864)]
)
def test_published_patterns_on_28_blocks(text: str, groups: int, logits: int) -> None:
    scheme = parse_scheme(text, 28)
    assert len(scheme.groups) == groups
    assert sum(group.num_choices for group in scheme.groups) == logits
    assert all(len(group.choices()) == group.num_choices for group in scheme.groups)
    assert scheme.groups[0].num_choices == comb(scheme.groups[0].size, scheme.groups[0].keep)


def test_unquoted_ratios_are_explained() -> None:
    for number, text in ((62, "1:2"), (124, "2:4"), (434, "7:14")):
        with pytest.raises(InputError, match=f'scheme={number} is a number.*scheme: "{text}"'):
            parse_scheme(number, 28)


@pytest.mark.parametrize("value", [2, 61, 120, 1.5, 62.5, float("nan"), float("inf"), -62])
def test_other_numbers_are_not_mistaken_for_ratios(value: float) -> None:
    with pytest.raises(InputError, match="is a number, not a scheme; valid: '1:2'"):
        parse_scheme(value, 28)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "scheme=None is not a scheme"),
        (True, "scheme=True is not a scheme"),
        ("half", "scheme='half' can't be read"),
        ("1:2:3", "can't be read"),
        ("1/2", "can't be read"),
        ("-1:2", "can't be read"),
        ("²:4", "can't be read"),
        ("[[1,2]", "can't be read"),
        ("[{[]: 1}]", "can't be read"),
        ("", "can't be read"),
        ("2:2", "must keep fewer blocks than it has; valid: 1 <= N < M"),
        ("3:2", "valid: 1 <= N < M"),
        ("0:2", "valid: 1 <= N < M"),
        ("1:3", "28 is not a multiple of 3; valid group sizes: 2, 4, 7, 14, 28"),
        ([], "has no groups"),
        ({"keep": 1}, "'keep' is not a"),
        ([[1, 2, 3]], r"\[1, 2, 3\] is not a \[keep, size\] pair"),
        ([[1.0, 28]], "is not a"),
        ([[True, 28]], "is not a"),
        (["1:2"], "'1:2' is not a"),
        ([[0, 28]], "a group can't keep 0 of 28 blocks"),
        ([[29, 28]], "a group can't keep 29 of 28 blocks"),
        ([[28, 28]], "keeps every block"),
        ([[1, 2]] * 7, "covers 14 blocks but the model has 28; the group sizes must add up"),
        ([[14, 28]], "40,116,600 ways; at most 100,000"),
    ],
)
def test_mistakes_are_named(value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_scheme(value, 28)


def test_groups_do_not_cross_borders() -> None:
    assert parse_scheme("1:2", 8, borders=[4]).keep == 4
    crossing = r"blocks 3\.\.5 crosses the border at block 4, .* valid: .* one ends before block 4"
    with pytest.raises(InputError, match=crossing):
        parse_scheme("1:3", 9, borders=[4])
    # Sizes that cross a border are not advertised.
    with pytest.raises(InputError, match=r"valid group sizes: 2, 4, or a list of groups$"):
        parse_scheme("1:3", 8, borders=[4])
    with pytest.raises(InputError, match=r"not a multiple of 2; valid: a list of groups$"):
        parse_scheme("1:2", 7, borders=[4])


@pytest.mark.parametrize(
    ("keep", "depth", "wanted"),
    [
        (7, 28, "1:4"),
        (7, 14, "1:2"),
        (14, 28, "1:2"),
        (21, 28, "3:4"),
        (3, 8, "3:8"),
        (1, 4, "1:4"),
    ],
)
def test_groups_that_follow_from_a_number_of_blocks(keep: int, depth: int, wanted: str) -> None:
    assert even_scheme(keep, depth) == parse_scheme(wanted, depth)


def test_every_stack_is_cut_in_the_same_proportion() -> None:
    assert even_scheme(8, 32, [16]).sizes == [[1, 4]] * 8
    assert even_scheme(6, 9, [3]).sizes == [[2, 3]] * 3
    with pytest.raises(InputError, match="keep=2: stacks of 4 and 2 blocks can't be cut"):
        even_scheme(2, 6, [4])


def test_too_many_patterns_without_a_scheme() -> None:
    with pytest.raises(InputError, match=r"^keep=13 in equal groups .* 13 of 28 blocks"):
        even_scheme(13, 28)
