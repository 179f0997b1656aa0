"""Shares of the learning rate by the importance of blocks."""

from __future__ import annotations

import math

import pytest

from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.recovery.updates import InverseImportance

SCORES = [8.0, 1.0, 2.0, 100.0, -0.5, 0.25]
KEPT = (0, 2, 3, 4)


def decision(**scores) -> Decision:
    return Decision(KEPT, 6, method="sensitivity", scores={"selector": "top_k", **scores})


def test_the_share_is_the_inverse_of_the_importance() -> None:
    found = InverseImportance(least=0.0).factors(decision(loss_change=SCORES))
    # The reference is the least positive importance of the blocks that stay: 2.
    assert found == [0.25, 1.0, 1.0, 0.02, 1.0, 1.0]
    scaled = InverseImportance(least=0.0).factors(decision(loss_change=[7 * s for s in SCORES]))
    assert scaled == pytest.approx(found), "the scale of the scores does not matter"


def test_bounds() -> None:
    found = InverseImportance(least=0.1).factors(decision(loss_change=SCORES))
    assert [found[i] for i in KEPT] == [0.25, 1.0, 0.1, 1.0]
    broken = [math.inf, 1.0, 2.0, 4.0, 8.0, 1.0]
    found = InverseImportance(least=0.1).factors(decision(loss_change=broken))
    assert [found[i] for i in KEPT] == [0.1, 1.0, 0.5, 0.25]
    with pytest.raises(InputError, match="no block that stays has a positive zd"):
        InverseImportance().factors(decision(zd=[-1.0] * 6))


def test_the_first_blocks_may_be_frozen() -> None:
    found = InverseImportance(frozen=2).factors(decision(loss_change=SCORES))
    assert [found[i] for i in KEPT] == [0.0, 0.0, 0.1, 1.0]
    with pytest.raises(InputError, match=r"frozen=4 leaves none of the 4 .* at most 3"):
        InverseImportance(frozen=4).factors(decision(loss_change=SCORES))


def test_which_scores() -> None:
    both = decision(loss_change=SCORES, block_influence=[1.0] * 6, order=[1, 5])
    assert InverseImportance("block_influence").factors(both) == [1.0] * 6
    with pytest.raises(
        InputError, match=r"holds block_influence, loss_change as .* recovery\.updates\.scores="
    ):
        InverseImportance().factors(both)
    with pytest.raises(InputError, match=r"scores=zd: .* it holds block_influence, loss_change"):
        InverseImportance("zd").factors(both)
    by_name = {f"blocks.{i}": score for i, score in enumerate(SCORES)}
    found = InverseImportance().factors(decision(inclusion=by_name))
    assert found == InverseImportance().factors(decision(loss_change=SCORES))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "takes the scores of a decision: give decision=PATH, or updates=none"),
        (decision(), "'sensitivity' holds none as scores .* choose a pruner that scores blocks"),
        (decision(loss_change=SCORES[:5]), "holds none as scores"),
        (decision(loss_change=["high"] * 6), "holds none as scores"),
        (decision(loss_change=[math.nan] * 6), "loss_change of the decision holds no numbers"),
        (Decision(None, removed=("blocks.0.mlp",)), "'indices' is about other units"),
        (
            Decision(KEPT, 6, scores={"loss_change": [1.0] * 12}, budget={"units": "branches"}),
            "is about other units; give updates=none",
        ),
    ],
)
def test_what_is_refused(given, message) -> None:
    with pytest.raises(InputError, match=message):
        InverseImportance().factors(given)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"least": -0.1}, r"updates\.least=-0\.1 must be from 0 to 1"),
        ({"least": 1.1}, r"updates\.least=1\.1"),
        ({"frozen": -1}, r"updates\.frozen=-1 must be at least 0"),
    ],
)
def test_values_out_of_range(values, message) -> None:
    with pytest.raises(InputError, match=message):
        InverseImportance(**values)
