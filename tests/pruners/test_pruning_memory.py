"""The decisions that scripts/pruning_memory.py measures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tinyfusion.backbones.dit import DiT
from tinyfusion.metrics.memory import bytes_of
from tinyfusion.surgery import prune

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "pruning_memory.py"


def test_about_half_of_a_network_goes_by_blocks_and_by_channels() -> None:
    spec = importlib.util.spec_from_file_location("pruning_memory", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    net = DiT(input_size=8, hidden_size=32, depth=4, num_heads=4, num_classes=10)
    decisions = script.decisions(net)
    assert len(decisions) == 2
    for decision in decisions.values():
        assert 0.4 < bytes_of(prune(net, decision)) / bytes_of(net) < 0.65
