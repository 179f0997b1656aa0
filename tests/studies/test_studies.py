"""Judging how a model uses its depth."""

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.studies.depth_use import depth_use, loss_with


def test_depth_use_sees_which_blocks_matter():
    net = DiT(4, 2, 1, hidden_size=8, depth=8, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.4)
    for block in net.blocks[4:]:
        for parameter in block.adaLN_modulation[1].parameters():
            torch.nn.init.zeros_(parameter)  # closed gates: the identity
    images, labels = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    held_out = HeldOutLoss(GaussianDiffusion(), images, labels)
    report = depth_use(net, held_out, held_out, draws=3)
    assert report["first_half"] == pytest.approx(1.0, abs=1e-6)
    assert report["single"][4:] == pytest.approx([1.0] * 4, abs=1e-6)
    assert all(abs(ratio - 1) > 1e-4 for ratio in report["single"][:4])
    assert len(report["consecutive"]) == 7
    assert report["full"] == loss_with(net, held_out, range(8))
