"""How noisy sampled gate gradients are (`pruner.gate_gradients`) at the first step."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tinyfusion import load
from tinyfusion.data.digits import Digits
from tinyfusion.gating.deltas import Lora
from tinyfusion.pipeline.budgets import Wanted
from tinyfusion.pipeline.defaults import process_for
from tinyfusion.pipeline.pruning import context_of
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.pruners.learned import MASK_LEARNING, Learned
from tinyfusion.studies.learning_costs import gate_gradient_noise
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.recipes import tinydit_d14
from tinyfusion.training.settings import PhaseSettings, TrainerSettings, TrainingSettings

SHARES = (0.5, 0.25, 0.1)
NOISE_BATCHES, NOISE_BATCH = 96, 128


def main() -> int:
    """Print it for the digits DiT at 7 of 28 blocks."""
    net, source = load("digits"), Digits()
    settings = TrainingSettings(steps=300, batch_size=NOISE_BATCH, learning_rate=1e-3)
    phases = PhaseSettings(mask_learning=settings)
    runner = PhaseRunner(
        process_for(net), source, phases, TrainerSettings(), partial(torch.optim.AdamW)
    )
    pruner = Learned(Lora(**asdict(tinydit_d14.lora)), tinydit_d14.gates.temperature,
                     tinydit_d14.gates.scale)  # fmt: skip
    with TemporaryDirectory() as folder:
        budget = Wanted(keep=7).budget(net, pruner)
        (phase,) = pruner.phases(context_of(net, runner, budget, Path(folder)))
        module = phase.module()
    assert isinstance(module, MaskLearning) and phase.name == MASK_LEARNING
    found = gate_gradient_noise(module.train(), source, SHARES, NOISE_BATCHES, NOISE_BATCH)
    print("| share of the gate gradients | variance between batches, times that of all |")
    print("|---|---|")
    for share, ratio in found.items():
        print(f"| {share:g} | {ratio:.2f} |")

    return 0


if __name__ == "__main__":
    raise SystemExit(main())
