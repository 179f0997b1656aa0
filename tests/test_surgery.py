"""Cutting a backbone leaves every kept tensor as it was."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.changes import Replacement
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.gating.deltas import Lora
from tinyfusion.metrics.memory import LiveBytes, bytes_of
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


def with_buffer(net: DiT) -> DiT:
    """A network with a table in no state dict, tied weights and a block that is frozen."""
    net.register_buffer("table", torch.arange(3.0), persistent=False)
    net.blocks[4].mlp.fc1.weight = net.blocks[3].mlp.fc1.weight
    net.blocks[3].requires_grad_(False)
    return net.bfloat16().train()


def test_types_modes_ties_and_what_is_trained_stay(net: DiT) -> None:
    pruned = prune(with_buffer(net), [0, 3, 4])
    assert pruned.training and pruned.table.dtype == torch.bfloat16
    assert {value.dtype for value in pruned.state_dict().values()} == {torch.bfloat16}
    assert pruned.blocks[1].mlp.fc1.weight is pruned.blocks[2].mlp.fc1.weight
    trained = [block.attn.qkv.weight.requires_grad for block in pruned.blocks]
    assert trained == [True, False, True]
    mine = {t.untyped_storage().data_ptr() for t in (*pruned.parameters(), *pruned.buffers())}
    theirs = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    assert not mine & theirs


def test_one_block_stands_for_an_interval(net: DiT) -> None:
    decision = Decision(None, 6, replaced=(Replacement(1, 4, 2), Replacement(4, 6, 5)))
    pruned = prune(net, decision)
    assert pruned.kept_from == (0, 2, 5)
    x, t, y = torch.randn(2, 4, 4, 4), torch.tensor([3, 900]), torch.tensor([0, 3])
    with torch.no_grad():
        assert torch.equal(pruned(x, t, y), prune(net, [0, 2, 5])(x, t, y))
    mar = MAR(4, 8, 2, 2, 2, in_channels=1, num_classes=3, buffer_size=2, head_depth=1,
              head_width=8)  # fmt: skip
    with pytest.raises(InputError, match=r"replaces blocks 1\.\.2 by one, but .* begin at 2"):
        prune(mar, Decision(None, 4, replaced=(Replacement(1, 3, 1),)))


@pytest.mark.parametrize("kept", [range(0, 12, 2), range(12), range(11), [5]])
def test_what_goes_is_not_copied(kept: Sequence[int]) -> None:
    net = DiT(4, 2, 1, hidden_size=32, depth=12, num_heads=2, num_classes=3)
    source = bytes_of(net)
    with LiveBytes([*net.parameters(), *net.buffers()]) as counted:
        pruned = prune(net, kept)
    assert source + counted.peak <= 1.001 * (source + bytes_of(pruned))


def test_what_does_not_fit_is_refused(net: DiT) -> None:
    with pytest.raises(InputError, match="made for a model of 28 blocks, this one has 6"):
        prune(net, Decision((0, 1), 28))
    with pytest.raises(InputError, match="block 6 does not exist"):
        prune(net, [0, 6])
    with pytest.raises(InputError, match="more than once"):
        prune(net, [1, 1])
