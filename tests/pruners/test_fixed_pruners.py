"""Choices given by hand and by position."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tinyfusion.errors import InputError
from tinyfusion.pruners.fixed import Indices
from tinyfusion.pruners.patterns import First, Last, Oracle, Uniform, mirrored

PATTERNS = (Oracle, Uniform, First, Last)


def test_indices_are_sorted_and_checked_against_the_model(context) -> None:
    assert Indices([3, 0]).choose(context(2)).kept == (0, 3)
    with pytest.raises(InputError, match=r"pruner\.kept=\[0,4\]: block 4 does not exist"):
        Indices([0, 4]).choose(context(2))
    with pytest.raises(InputError, match="listed more than once"):
        Indices([1, 1]).choose(context(2))


def test_indices_may_be_names_of_blocks_and_branches(context) -> None:
    found = Indices(["blocks.3.mlp", 0, "blocks.2"]).choose(context(2))
    assert found.kept == (0, 2, 3) and found.removed == ("blocks.3.attn",)
    assert Indices(["blocks.1", 0]).choose(context(2)) == Indices([0, 1]).choose(context(2))
    for kept, said in (
        (["blocks.9"], r"there is no 'blocks\.9'; valid: 0\.\.3, or names such as blocks\.0 and"),
        (["blocks.0.attn", "blocks.0.attn"], "names a branch twice"),
        (["blocks.0.attn", 0], "names a branch twice"),
        (["blocks.0.attn", 7], "block 7 does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            Indices(kept).choose(context(2))


def test_oracle_of_the_published_model() -> None:
    assert mirrored(28, 14) == (0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27)


@pytest.mark.parametrize("depth", range(4, 60, 4))
def test_oracle_of_half_the_blocks_is_even_ones_then_odd_ones(depth: int) -> None:
    half = depth // 2
    assert mirrored(depth, half) == (*range(0, half, 2), *range(half + 1, depth, 2))


@pytest.mark.parametrize("depth", range(2, 33))
def test_oracle_of_any_budget(depth: int) -> None:
    for keep in range(1, depth):
        kept = mirrored(depth, keep)
        assert len(set(kept)) == keep and list(kept) == sorted(kept)
        assert kept[0] == 0 and (keep == 1 or kept[-1] == depth - 1)
        reflected = tuple(sorted(depth - 1 - i for i in kept))
        if keep % 2 == 0 or (depth % 2 and keep > 1):
            assert reflected == kept
        # Spread out: neither half is thinned at one place more than at another.
        gaps = {b - a for a, b in pairwise(kept) if b < depth // 2}
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_other_patterns(context, stack) -> None:
    net = stack(*[lambda states: states] * 10)
    assert Uniform().choose(context(4, net=net)).kept == (0, 2, 5, 7)
    assert First().choose(context(3, net=net)).kept == (0, 1, 2)
    assert Last().choose(context(3, net=net)).kept == (7, 8, 9)
    assert Oracle().choose(context(5, net=net)).kept == (0, 1, 3, 7, 9)


def test_a_pattern_that_constraints_rule_out_names_them(context) -> None:
    with pytest.raises(InputError, match=r"pruner=first does not meet budget\.protected; leave"):
        First().choose(context(2, protected=[3]))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("keep", [0, 4])
def test_patterns_refuse_to_keep_all_or_nothing(context, pattern, keep: int) -> None:
    with pytest.raises(InputError, match=f"keep={keep} must be between 1 and 3"):
        pattern().choose(context(keep))
