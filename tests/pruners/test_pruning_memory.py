"""The decisions that scripts/pruning_memory.py measures."""

from __future__ import annotations

from tinyfusion.backbones.dit import DiT
from tinyfusion.metrics.memory import bytes_of
from tinyfusion.surgery import prune


def test_about_half_of_a_network_goes_by_blocks_and_by_channels(script) -> None:
    measured = script("pruning_memory")
    net = DiT(input_size=8, hidden_size=32, depth=4, num_heads=4, num_classes=10)
    decisions = measured.decisions(net)
    assert len(decisions) == 2
    for decision in decisions.values():
        assert 0.4 < bytes_of(prune(net, decision)) / bytes_of(net) < 0.65
