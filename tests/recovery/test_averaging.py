"""A student that starts from means of blocks."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.changes import Replacement
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.recovery.averaging import prune_averaged
from tinyfusion.surgery import prune


def filled(net):
    """Blocks whose parameters all are the block's index."""
    with torch.no_grad():
        for index, block in enumerate(net.blocks):
            for parameter in block.parameters():
                parameter.fill_(float(index))
    return net


def values(net) -> list[set[float]]:
    return [{v for p in block.parameters() for v in p.unique().tolist()} for block in net.blocks]


@pytest.fixture
def net() -> DiT:
    return DiT(4, 2, 4, hidden_size=16, depth=6, num_heads=2, num_classes=3)


def test_a_block_starts_from_the_mean_of_those_it_stands_for(net) -> None:
    source = filled(net)
    # Block 0 comes before the first kept one, 2 stands alone, 3 for 3..5.
    student = prune_averaged(source, Decision((1, 2, 3), 6))
    assert values(student) == [{1.0}, {2.0}, {4.0}]
    assert student.kept_from == (1, 2, 3)
    assert values(source) == [{float(i)} for i in range(6)]
    assert values(prune_averaged(source, Decision((0, 4), 6))) == [{1.5}, {4.5}]


def test_everything_else_is_that_of_the_cut_model(net) -> None:
    student, cut = prune_averaged(net, Decision((0, 1, 4), 6)), prune(net, (0, 1, 4))
    assert student.config() == cut.config()
    for name, value in student.state_dict().items():
        alike = torch.equal(value, cut.state_dict()[name])
        averaged = name.startswith(("blocks.1.", "blocks.2."))
        assert alike or averaged, name
    mean = torch.stack([net.blocks[i].mlp.fc1.weight for i in (1, 2, 3)]).double().mean(0)
    torch.testing.assert_close(student.blocks[1].mlp.fc1.weight.double(), mean)
    assert student.blocks[1].mlp.fc1.weight.requires_grad


def test_no_mean_crosses_a_border() -> None:
    sizes = {"num_heads": 2, "in_channels": 1, "num_classes": 3, "buffer_size": 2}
    net = filled(MAR(4, 8, 3, 4, **sizes, head_depth=1, head_width=8))
    # Kept 0 stands for 0..2 of the encoder; 3, the decoder's first, for nothing.
    assert values(prune_averaged(net, Decision((0, 5), 7))) == [{1.0}, {5.5}]


def test_blocks_of_other_shapes_have_no_mean(two_streams) -> None:
    net = two_streams.TwoStreams(depth=6)
    net.remove_branches(["blocks.3.mlp"])
    with pytest.raises(InputError, match=r"start=averaged: blocks 2\.\.3 have no mean, as their"):
        prune_averaged(net, Decision((0, 1, 2, 4), 6))
    assert prune_averaged(net, Decision((0, 1, 2, 3, 4), 6)).depth == 5
    # A kept block that loses a branch itself.
    decision = Decision((0, 1, 2, 4, 5), 6, removed=("blocks.2.attn",))
    with pytest.raises(InputError, match=r"blocks 2\.\.3 .* give start=kept"):
        prune_averaged(net, decision)


def test_there_must_be_removed_blocks(net) -> None:
    with pytest.raises(InputError, match="'indices' removes no blocks; give start=kept"):
        prune_averaged(net, Decision(None, 6, removed=("blocks.3.mlp",)))


def test_a_block_in_the_place_of_an_interval(net) -> None:
    student = prune_averaged(filled(net), Decision(None, 6, replaced=(Replacement(1, 4, 1),)))
    assert values(student) == [{0.0}, {2.0}, {4.0}, {5.0}]
