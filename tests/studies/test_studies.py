"""Reading finished runs and judging how a model uses its depth."""

import pytest
import torch
from omegaconf import OmegaConf

from tinyfusion.backbones.dit import DiT
from tinyfusion.errors import InputError
from tinyfusion.files import write_json, write_text
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.studies.collect import read_run, read_sweep, summarise
from tinyfusion.studies.depth_use import depth_use, loss_with


def write_run(folder, method, seed, fid):
    config = {"seed": seed, "command": "run", "recovery": {"feature_mask": "none"}}
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
    write_text(folder / "decision.json", "{}")
    write_json(
        folder / "metrics.json",
        {
            "models": {"recovered": {"fid": fid}},
            "protocol": {"num_samples": 4},
            "floor": {},
            "decision": {"method": method, "kept": [0, 2]},
        },
    )


def test_runs_are_grouped_with_mean_and_spread(tmp_path):
    write_run(tmp_path / "a" / "s0", "learned", 0, 1.0)
    write_run(tmp_path / "a" / "s1", "learned", 1, 2.0)
    write_run(tmp_path / "b", "random", 0, 5.0)
    rows = summarise(read_sweep(tmp_path), ["method", "recovery.feature_mask"], ["fid"])
    assert rows == [
        {
            "method": "learned",
            "recovery.feature_mask": "none",
            "runs": 2,
            "fid": (1.5, pytest.approx(0.5**0.5)),
        },
        {"method": "random", "recovery.feature_mask": "none", "runs": 1, "fid": 5.0},
    ]


def test_unfinished_and_missing_runs_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no finished run"):
        read_sweep(tmp_path)
    with pytest.raises(InputError, match="holds no run"):
        read_run(tmp_path)
    write_text(tmp_path / "config.yaml", "seed: 0\n")
    with pytest.raises(InputError, match="resume="):
        read_run(tmp_path)


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
