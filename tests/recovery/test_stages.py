"""Which blocks are next to a removal, and what of it can be wrong."""

from __future__ import annotations

import pytest

from tinyfusion.backbones.dit import DiT
from tinyfusion.errors import InputError
from tinyfusion.recovery.stages import SeamsFirst, seams


@pytest.fixture
def net() -> DiT:
    return DiT(4, 2, 4, hidden_size=16, depth=4, num_heads=2, num_classes=3)


@pytest.mark.parametrize(
    ("kept", "depth", "found"),
    [
        ((0, 1, 2, 5, 6, 7), 8, (2, 3)),
        ((1, 2, 3), 4, (0,)),
        ((0, 1, 2), 4, (2,)),
        ((0, 1, 2), None, ()),
        ((2, 3, 4), None, (0,)),
        ((0, 2, 4, 6), 8, (0, 1, 2, 3)),
        ((0, 1, 2, 3), 4, ()),
    ],
)
def test_seams(kept, depth, found) -> None:
    assert seams(kept, depth) == found


def test_the_first_stage_holds_the_seams_and_what_is_named(net: DiT) -> None:
    first = SeamsFirst(0.2, ["adaLN_modulation"]).first_stage(net, [1], 50)
    assert (first.steps, first.seams) == (10, 1)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    wanted = {n for n in trained if n.startswith("blocks.1.") or "adaLN_modulation" in n}
    assert first.names == wanted
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    said = first.summary(net)
    assert said.endswith("then all of them")
    assert first.summary(net, warm_up=20).endswith("another warm-up of the rate over 20 steps")
    for text in (
        f"until step 10 {sum(sizes[n] for n in wanted):,} of {sum(sizes[n] for n in trained):,}",
        "the 1 of 4 blocks next to a removal, and adaLN_modulation",
    ):
        assert text in said
    everywhere = SeamsFirst().first_stage(net, range(4), 50)
    assert "all 4 blocks, each of which is next to a removal" in everywhere.summary(net)


def test_both_stages_have_a_step() -> None:
    assert [SeamsFirst(share).steps(3) for share in (0.01, 0.5, 0.99)] == [1, 2, 2]
    with pytest.raises(InputError, match=r"training\.recovery\.steps=1 can't be divided"):
        SeamsFirst().steps(1)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0])
def test_shares_out_of_range(share: float) -> None:
    with pytest.raises(InputError, match=r"stages\.share=.* less than 1"):
        SeamsFirst(share)


def test_names_and_models_that_can_not_be(net: DiT) -> None:
    with pytest.raises(InputError, match=r"stages\.also=\[''\] must list parts"):
        SeamsFirst(also=[""])
    with pytest.raises(InputError, match="'adaln' is part of no parameter's name; the last one"):
        SeamsFirst(also=["adaln"]).check(net, 10)
    with pytest.raises(InputError, match="no removed block is known; give stages=none"):
        SeamsFirst().first_stage(net, (), 10)
