"""Hand-written and random choices."""

from __future__ import annotations

from collections import Counter
from math import comb

import pytest

from tinyfusion.errors import InputError
from tinyfusion.pruners.fixed import Indices, Random


def test_indices_are_sorted_and_checked_against_the_model(context) -> None:
    assert Indices([3, 0]).choose(context(2)).kept == (0, 3)
    with pytest.raises(InputError, match=r"pruner\.kept=\[0,4\]: block 4 does not exist"):
        Indices([0, 4]).choose(context(2))
    with pytest.raises(InputError, match="listed more than once"):
        Indices([1, 1]).choose(context(2))


def test_random_is_reproducible_and_records_its_seed(context) -> None:
    choice = Random().choose(context(2, seed=5))
    assert choice == Random().choose(context(2, seed=5))
    assert choice.scores == {"draw_seed": 5}
    assert Random(draw_seed=5).choose(context(2, seed=0)).kept == choice.kept


def test_random_is_uniform_over_the_sets(context) -> None:
    draws = 3000
    counts = Counter(Random(draw_seed=i).choose(context(2)).kept for i in range(draws))
    assert len(counts) == comb(4, 2)
    expected = draws / comb(4, 2)
    chi_squared = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_squared < 20.5, "99.9 % quantile at five degrees of freedom"


@pytest.mark.parametrize("keep", [0, 4])
def test_random_refuses_to_keep_all_or_nothing(context, keep: int) -> None:
    with pytest.raises(InputError, match=f"keep={keep} must be between 1 and 3"):
        Random().choose(context(keep))
