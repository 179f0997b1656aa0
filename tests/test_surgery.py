"""Cutting a backbone leaves every kept tensor as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.gating.deltas import Lora
from tinyfusion.surgery import prune


@pytest.fixture
def net() -> DiT:
    net = DiT(input_size=4, hidden_size=16, depth=6, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def test_kept_tensors_are_bit_identical_whatever_was_learned_elsewhere(net: DiT) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    learner = copy.deepcopy(net)
    Lora(rank=2, alpha=4.0).attach(learner)
    for parameter in learner.parameters():
        parameter.data += 1.0

    kept = (1, 2, 5)
    pruned = prune(net, Decision(kept, 6))
    assert pruned.depth == 3
    for name, value in pruned.state_dict().items():
        source = name
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            source = f"blocks.{kept[int(index)]}.{rest}"
        assert torch.equal(value, before[source]), name
    assert set(pruned.state_dict()) == {
        n for n in before if not n.startswith(("blocks.3.", "blocks.4.", "blocks.5."))
    }
    assert pruned.config() == net.config() | {"depth": 3}


def test_source_is_left_alone_and_shares_no_memory(net: DiT) -> None:
    pruned = prune(net, [0, 3])
    assert net.depth == 6
    assert net.kept_from is None
    pruned.blocks[1].attn.proj.weight.data.zero_()
    assert net.blocks[3].attn.proj.weight.abs().sum() > 0


def test_runs_as_the_source_without_the_dropped_blocks(net: DiT) -> None:
    x, t, y = torch.randn(2, 4, 4, 4), torch.tensor([3, 900]), torch.tensor([0, 3])
    kept = (0, 2, 3)

    def skipping(index, block, states_BTD, condition):
        return block(states_BTD, condition) if index in kept else states_BTD

    with torch.no_grad():
        assert torch.equal(prune(net, kept)(x, t, y), net(x, t, y, run_block=skipping))


def test_pruning_twice_remembers_the_first_source(net: DiT) -> None:
    once = prune(net, [0, 2, 3, 5])
    assert once.kept_from == (0, 2, 3, 5)
    twice = prune(once, [1, 3])
    assert twice.kept_from == (2, 5)
    assert torch.equal(twice.blocks[0].mlp.fc1.weight, net.blocks[2].mlp.fc1.weight)


def test_what_does_not_fit_is_refused(net: DiT) -> None:
    with pytest.raises(InputError, match="made for a model of 28 blocks, this one has 6"):
        prune(net, Decision((0, 1), 28))
    with pytest.raises(InputError, match="block 6 does not exist"):
        prune(net, [0, 6])
    with pytest.raises(InputError, match="more than once"):
        prune(net, [1, 1])
