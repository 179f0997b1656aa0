"""Which units fade and go when, and that a network without them is what is left."""

from __future__ import annotations

import copy

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.changes import Replacement
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.recovery.fading import FadeOut
from tinyfusion.surgery import prune
from tinyfusion.units import BRANCHES

KEPT = (0, 3, 5)


@pytest.fixture
def net() -> DiT:
    net = DiT(4, 2, 4, hidden_size=16, depth=6, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 4, 4, 4), torch.tensor([3, 900]), torch.tensor([0, 3])


def names(fading) -> list[str]:
    return [unit.name for unit in fading.units]


@torch.no_grad()
def test_after_the_window_the_faded_model_is_the_sliced_one(net, inputs) -> None:
    fading = FadeOut(0.6, 1.0).fading(net, Decision(KEPT, 6), 20)
    assert (fading.steps, fading.window) == ((4, 8, 12), 4)
    whole = net(*inputs)
    assert torch.equal(net(*inputs, run_block=fading.run_block(net, 0)), whole)
    gone: list[int] = []
    for step, unit in zip(fading.steps, fading.units, strict=True):
        gone.append(unit.index)
        assert fading.gone(step) == tuple(gone)
        sliced = prune(net, [block for block in range(6) if block not in gone])
        faded = net(*inputs, run_block=fading.run_block(net, step))
        assert torch.equal(faded, sliced(*inputs)), step
        assert not torch.equal(net(*inputs, run_block=fading.run_block(net, step - 1)), faded)
    assert torch.equal(net(*inputs, run_block=fading.run_block(net, 19)), prune(net, KEPT)(*inputs))


def test_gamma_falls_linearly_from_one_to_zero(net) -> None:
    fading = FadeOut(0.6, 1.0).fading(net, Decision(KEPT, 6), 20)
    assert [fading.gamma(1, step) for step in range(3, 10)] == [1, 1, 0.75, 0.5, 0.25, 0, 0]
    short = FadeOut(0.6, 0.5).fading(net, Decision(KEPT, 6), 20)
    assert [short.gamma(1, step) for step in range(5, 9)] == [1, 1, 0.5, 0]
    at_once = FadeOut(0.6, 0.0, at_once=2).fading(net, Decision(KEPT, 6), 20)
    assert (at_once.steps, at_once.window) == ((6, 6, 12), 1)
    assert [at_once.gamma(0, step) for step in (5, 6)] == [1, 0]


@torch.no_grad()
def test_a_faded_block_is_scaled_as_a_whole(net, inputs) -> None:
    fading = FadeOut(0.5, 1.0).fading(net, Decision((0, 1, 2, 3, 4), 6), 20)
    states = {}

    def by_hand(index, block, before, condition):
        after = block(before, condition)
        states[index] = before + 0.7 * (after - before) if index == 5 else after
        return states[index]

    assert fading.gamma(0, 3) == 0.7
    wanted = net(*inputs, run_block=by_hand)
    torch.testing.assert_close(net(*inputs, run_block=fading.run_block(net, 3)), wanted)


@pytest.fixture
def branched(two_streams):
    """Six blocks of two branches, with two streams of states."""
    return two_streams.TwoStreams(depth=6)


@torch.no_grad()
def test_branches_fade_as_blocks_do(branched) -> None:
    net, inputs = branched, branched.example_inputs(2)
    decision = Decision((0, 1, 2, 3, 5), 6, removed=("blocks.1.attn", "blocks.3.mlp"))
    fading = FadeOut(0.6).fading(net, decision, 20)
    assert names(fading) == ["blocks.4", "blocks.3.mlp", "blocks.1.attn"]
    assert [unit.kind == BRANCHES for unit in fading.units] == [False, True, True]
    left = net(*inputs, run_block=fading.run_block(net, 12))
    torch.testing.assert_close(left, prune(net, decision)(*inputs))
    assert not torch.equal(net(*inputs, run_block=fading.run_block(net, 11)), left)


@torch.no_grad()
def test_streams_fade_alike(branched) -> None:
    fading = FadeOut(0.5).fading(branched, Decision(KEPT, 6), 8)
    inputs = branched.example_inputs(2)
    faded = branched(*inputs, run_block=fading.run_block(branched, 4))
    assert torch.equal(faded, prune(branched, KEPT)(*inputs))
    assert not torch.equal(branched(*inputs, run_block=fading.run_block(branched, 1)), faded)


@pytest.mark.parametrize(
    ("scores", "budget", "order"),
    [
        ({}, {}, ["blocks.4", "blocks.2", "blocks.1"]),
        ({"order": [2, 4, 1]}, {}, ["blocks.2", "blocks.4", "blocks.1"]),
        # What came back at the end is listed as well, and stays.
        ({"order": [2, 3, 4, 1]}, {}, ["blocks.2", "blocks.4", "blocks.1"]),
        ({"order": [2, 4]}, {}, ["blocks.4", "blocks.2", "blocks.1"]),
        ({"order": "2 4 1"}, {}, ["blocks.4", "blocks.2", "blocks.1"]),
        # Both branches of 1, 2 and 4, in turn: a block goes with the last of its branches.
        (
            {"order": [2, 5, 9, 4, 3, 8]},
            {"units": "branches"},
            ["blocks.2", "blocks.1", "blocks.4"],
        ),
    ],
)
def test_the_evidence_says_in_which_order(branched, scores, budget, order) -> None:
    decision = Decision(KEPT, 6, scores=scores, budget=budget)
    assert names(FadeOut().fading(branched, decision, 20)) == order


def test_listed_branches_go_in_their_order(branched) -> None:
    removed = ("blocks.1.attn", "blocks.3.mlp")
    evidence = {"scores": {"order": [2, 8, 7, 9]}, "budget": {"units": "branches"}}
    decision = Decision((0, 1, 2, 3, 5), 6, removed=removed, **evidence)
    fading = FadeOut().fading(branched, decision, 20)
    assert names(fading) == ["blocks.1.attn", "blocks.3.mlp", "blocks.4"]


def test_a_block_that_stands_for_others_stays(net) -> None:
    decision = Decision(None, 6, replaced=(Replacement(1, 4, 2),))
    assert names(FadeOut().fading(net, decision, 20)) == ["blocks.3", "blocks.1"]


def test_few_steps_and_the_last_one_runs_without(net) -> None:
    fading = FadeOut(0.99).fading(net, Decision((0,), 6), 3)
    assert max(fading.steps) == 2 and min(fading.steps) >= 1
    assert all(fading.gamma(number, 0) == 1 for number in range(5))


def test_states_are_compared_where_they_will_be(net, branched) -> None:
    fading = FadeOut().fading(net, Decision(KEPT, 6), 20)
    # Each kept block stands for the removed ones behind it.
    assert fading.places([(0, 2), (1, 4), (2, 5)], net, 6) == (2, 4, 5)
    grouped = Decision((0, 3, 5), 6, scheme=[[1, 2]] * 3)
    assert FadeOut().fading(net, grouped, 20).places([(0, 1)], net, 6) == (1,)
    # A teacher of another depth: behind all that the block stands for.
    assert fading.places([(0, 5), (1, 9), (2, 11)], net, 12) == (2, 4, 5)
    branches = Decision(None, 6, removed=("blocks.1.attn",))
    assert FadeOut().fading(branched, branches, 20).places([(1, 1)], branched, 6) == (1,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0.0}, r"stages\.share=0\.0 must be more than 0 and less than 1"),
        ({"share": 1.0}, r"stages\.share=1\.0"),
        ({"window": 1.5}, r"stages\.window=1\.5 must be from 0 to 1"),
        ({"at_once": 0}, r"stages\.at_once=0 must be at least 1"),
    ],
)
def test_values_out_of_range(values, message) -> None:
    with pytest.raises(InputError, match=message):
        FadeOut(**values)


def test_what_can_not_fade(net) -> None:
    with pytest.raises(InputError, match=r"training\.recovery\.steps=1 leaves no step"):
        FadeOut().check(net, 1)
    with pytest.raises(InputError, match=r"give the whole model as checkpoint= with decision=PATH"):
        FadeOut().fading(net, None, 20)
    with pytest.raises(InputError, match="made for one of 7 blocks, this one has 6"):
        FadeOut().fading(net, Decision((0,), 7), 20)
    with pytest.raises(InputError, match="removes nothing; give stages=none"):
        FadeOut().fading(net, Decision(range(6), 6), 20)


def test_the_network_is_left_as_it_is(net) -> None:
    before = copy.deepcopy(net.state_dict())
    FadeOut().fading(net, Decision(KEPT, 6), 20)
    assert net.depth == 6 and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
