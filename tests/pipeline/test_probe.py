"""Timing of sampling: as many steps as are timed, no more."""

from __future__ import annotations

from tinyfusion.backbones.dit import DiT
from tinyfusion.pipeline.probe import probe_sampling
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.guidance import Guidance


def test_a_long_sampler_is_stopped_and_a_short_one_is_enough() -> None:
    net = DiT(4, 2, 1, hidden_size=8, depth=1, num_heads=2, num_classes=3)
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    net.register_forward_hook(count)
    for sampler, wanted in ((AncestralSampler(50), 4), (AncestralSampler(1), 1)):
        forwards = 0
        seconds = probe_sampling(net, GaussianDiffusion(), sampler, Guidance(2.0), 2, steps=3)
        assert forwards == wanted and seconds > 0
