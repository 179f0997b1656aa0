"""Whether cheaper steps of mask learning come to the same choice, and what they cost.

Skips what is finished. Several processes may share the work: --part 0/2 and --part 1/2 halve it.
Further arguments are overrides for every job, such as trainer.threads=1.

    python scripts/learning_study.py trainer.threads=1
    python scripts/learning_study.py --report
    python scripts/learning_study.py --noise
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tinyfusion import load
from tinyfusion.cli import main as tinyfusion
from tinyfusion.data.digits import Digits
from tinyfusion.gating.deltas import Lora
from tinyfusion.pipeline.budgets import Wanted
from tinyfusion.pipeline.defaults import process_for
from tinyfusion.pipeline.pruning import context_of
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.pruners.learned import MASK_LEARNING, Learned
from tinyfusion.studies.budgets import cell_of
from tinyfusion.studies.jobs import options_and_overrides, run_study, seed_list, share_of
from tinyfusion.studies.learning_costs import (
    CELLS,
    WAYS,
    gate_gradient_noise,
    plan,
    report,
)
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.recipes import tinydit_d14
from tinyfusion.training.settings import PhaseSettings, TrainerSettings, TrainingSettings

SHARES = (0.5, 0.25, 0.1)
NOISE_BATCHES, NOISE_BATCH = 96, 128


def noise() -> None:
    """Print how noisy sampled gate gradients are at the first step of the digits DiT at 7 of 28."""
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("outputs", "learning_study"))
    parser.add_argument("--seeds", type=seed_list, default=[0, 1, 2], metavar="0,1,2")
    parser.add_argument(
        "--cell", type=cell_of, action="append", metavar="TEACHER:BUDGET", help="instead of all"
    )
    parser.add_argument("--way", choices=WAYS, action="append", help="instead of all")
    parser.add_argument(
        "--part", type=share_of, default=(0, 1), metavar="K/N", help="share K of N, counted from 0"
    )
    parser.add_argument("--report", action="store_true", help="only collect what is there")
    parser.add_argument("--noise", action="store_true", help="noise of sampled gradients instead")
    options, passed_on = options_and_overrides(parser, argv)
    if options.noise:
        noise()
        return 0
    ways = {name: WAYS[name] for name in options.way or WAYS}
    return run_study(
        "learning_study",
        lambda: plan(options.root, options.seeds, options.cell or CELLS, ways),
        lambda jobs: report(options.root, jobs),
        None if options.report else tinyfusion,
        passed_on,
        options.part,
    )


if __name__ == "__main__":
    raise SystemExit(main())
