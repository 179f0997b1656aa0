"""Our training and the straightforward one side by side, built from equal weights.

Networks have random weights, data is noise, rates and losses are those of the published recipe.
What is measured of both sides is in `tinyfusion.studies.step_speed`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.dit import DiT
from tinyfusion.budget import Budget
from tinyfusion.errors import InputError
from tinyfusion.gating.deltas import Full, Lora
from tinyfusion.metrics.speed import Clock, wall_time
from tinyfusion.pipeline.probe import NoiseImages
from tinyfusion.pipeline.pruning import context_of
from tinyfusion.pipeline.recovering import RecoveryContext, recovery_phases, state_sizes_of
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.pruners.learned import Learned
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.origins import aligned_pairs
from tinyfusion.scheme import even_scheme
from tinyfusion.seeding import StepNoise
from tinyfusion.studies.plain_gates import PatternChoice, attach_low_rank
from tinyfusion.studies.plain_steps import PlainLoop, PlainMaskLearning, PlainRecovery
from tinyfusion.surgery import prune
from tinyfusion.training.phases import Phase
from tinyfusion.training.recipes import tinydit_d14 as recipe
from tinyfusion.training.settings import PhaseSettings, TrainerSettings

DELTAS = ("lora", "full")


@dataclass(frozen=True)
class Setting:
    """A network of random weights, and how it is measured.

    Attributes:
        width: hidden size.
        tokens: tokens of a sample; a square number.
        batch: samples of a training step.
        depth: blocks.
        compiled: compile the blocks of our side.
        rounds: timed rounds; one before them is not timed.
        steps: training steps of each side in a round.
        images: samples that are drawn at once.
        sampling_steps: steps of the sampler, at least 2.
        device: where both sides run.
        clock: what tells the time.

    Raises:
        InputError: a number out of range.
    """

    width: int = 64
    tokens: int = 16
    batch: int = 64
    depth: int = 28
    compiled: bool = False
    rounds: int = 8
    steps: int = 2
    images: int = 4
    sampling_steps: int = 10
    device: str = "cpu"
    clock: Clock = wall_time

    def __post_init__(self) -> None:
        least = {"batch": 1, "rounds": 1, "steps": 1, "images": 1, "sampling_steps": 2}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name}={getattr(self, name)} must be at least {value}")
        if self.tokens < 1 or math.isqrt(self.tokens) ** 2 != self.tokens:
            raise InputError(f"tokens={self.tokens} must be a square number, such as 16 or 64")

    def __str__(self) -> str:
        return f"{self.depth} blocks, width {self.width}, {self.tokens} tokens"

    def net(self) -> DiT:
        """The network: the same weights at every call, every block in use."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = DiT(
                input_size=2 * math.isqrt(self.tokens),
                hidden_size=self.width,
                depth=self.depth,
                num_heads=max(4, self.width // 64),
                gate_bias_init=0.5,
            )
            nn.init.normal_(net.final_layer.linear.weight, std=0.02)
        return net.to(self.device)

    def runner(self, net: Backbone) -> PhaseRunner:
        """What trains our side, by the published recipe but for lengths and batches."""
        steps = self.steps * (1 + self.rounds)
        return PhaseRunner(
            process=GaussianDiffusion(),
            source=NoiseImages(
                10 * self.batch,
                (net.in_channels, net.input_size, net.input_size),
                net.num_classes,
            ),
            training=PhaseSettings(
                mask_learning=replace(recipe.mask_learning, steps=steps, batch_size=self.batch),
                recovery=replace(recipe.recovery, steps=steps, batch_size=self.batch),
            ),
            trainer=TrainerSettings(
                "cpu" if self.device == "cpu" else "gpu",
                compile=self.compiled,
                resume_every=10 * steps,
                progress=False,
            ),
            optimizer=partial(torch.optim.AdamW, **asdict(recipe.optimizer), fused=True),
        )


class Sides(NamedTuple):
    """One training twice, from equal weights.

    Attributes:
        runner: trains ours.
        phase: ours.
        plain: the straightforward loop.
    """

    runner: PhaseRunner
    phase: Phase
    plain: PlainLoop


def mask_learning(setting: Setting, keep: int, delta: str, **options: Any) -> Sides:
    """Both sides of mask learning, in the smallest equal groups (`even_scheme`).

    Args:
        setting: network and batch.
        keep: blocks that stay.
        delta: the weight update, one of `DELTAS`.
        options: further arguments of our `Learned`.

    Raises:
        InputError: another ``delta``, or a number of blocks that can't stay.
    """
    if delta not in DELTAS:
        raise InputError(f"delta={delta!r} is not known; valid: {', '.join(DELTAS)}")
    scheme, gates = even_scheme(keep, setting.depth), recipe.gates
    net, plain_net = setting.net(), setting.net()
    update = Lora(**asdict(recipe.lora)) if delta == "lora" else Full()
    if delta == "lora":
        attach_low_rank(plain_net, recipe.lora.rank, recipe.lora.alpha)
    runner = setting.runner(net)
    learned = Learned(
        update,
        gates.temperature,
        gates.scale,
        gates.gate_rate_factor,
        gates.gate_ema_decay,
        **options,
    )
    budget = Budget.of(net.units(), keep, scheme=scheme)
    (phase,) = learned.phases(context_of(net, runner, budget, Path()))
    choice = PatternChoice(scheme).to(setting.device)
    plain = PlainMaskLearning(plain_net, choice, gates, **_shared(runner, phase))
    return Sides(runner, phase, plain)


def recovery(setting: Setting, keep: int, **options: Any) -> Sides:
    """Both sides of recovery by masked distillation from the whole network.

    Args:
        setting: network and batch.
        keep: blocks that the student has.
        options: further arguments of our `Objective`.

    Raises:
        InputError: a number of blocks that can't stay.
    """
    teacher = setting.net()
    student = prune(teacher, even_scheme(keep, setting.depth).first_of_each)
    plain_student = copy.deepcopy(student)
    objective = Objective(**asdict(recipe.objective), **options)
    runner = setting.runner(teacher)
    sizes = state_sizes_of(runner, setting.device)
    (phase,) = recovery_phases(objective, RecoveryContext(student, teacher, None, runner, sizes))
    pairs = aligned_pairs(student, teacher, None)
    plain = PlainRecovery(
        plain_student, setting.net(), pairs, recipe.objective, **_shared(runner, phase)
    )
    return Sides(runner, phase, plain)


def _shared(runner: PhaseRunner, phase: Phase) -> dict[str, Any]:
    """Arguments of `PlainLoop` for the training that a phase is."""
    return {
        "process": runner.process,
        "noise": StepNoise(runner.seed, phase.name),
        "settings": runner.settings_of(phase),
    }
