"""Training a pruned network back to quality: what it starts from, which phases it takes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.meta import shape_copy
from tinyfusion.backbones.presets import build as build_backbone
from tinyfusion.backbones.presets import family_of
from tinyfusion.decision import Decision
from tinyfusion.pipeline.recovery_checks import (
    AVERAGED,
    KEPT,
    RECOVERY,
    PhasedRecovery,
    RecoveryContext,
    StateSizes,
    starts_whole,
)
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.pruners.contract import calibration_batch
from tinyfusion.recovery.averaging import prune_averaged
from tinyfusion.recovery.fading import FadeOut
from tinyfusion.recovery.features import mean_squares, one_scale
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.origins import aligned_pairs, seams_of
from tinyfusion.recovery.stages import SeamsFirst
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.seeding import seed_of
from tinyfusion.surgery import prune
from tinyfusion.training.phases import Phase

if TYPE_CHECKING:
    from tinyfusion.training.module import DenoiserTraining
    from tinyfusion.training.recovery import Recovery

log = logging.getLogger(__name__)


def student_of(
    recovery: Objective | PhasedRecovery, net: Backbone, decision: Decision, start: str = KEPT
) -> Backbone:
    """The network that a recovery begins with; a copy.

    Args:
        recovery: what is minimised, or what states its phases.
        net: the source model; left as it is.
        decision: what of it stays.
        start: see `check_recovery`; for ``fresh`` see `fresh_student`.

    Raises:
        InputError: a decision that does not fit the model.
    """
    if starts_whole(recovery):
        return copy.deepcopy(net)
    return prune_averaged(net, decision) if start == AVERAGED else prune(net, decision)


def recovery_phases(
    recovery: Objective | PhasedRecovery, context: RecoveryContext
) -> Sequence[Phase]:
    """What a recovery trains.

    Args:
        recovery: an `Objective`, which is minimised in one phase, or one that states its own.
        context: what it may use.
    """
    if isinstance(recovery, Objective):
        objective = recovery
        return [Phase(RECOVERY, lambda: _module(objective, context))]
    return recovery.phases(context)


def _module(objective: Objective, context: RecoveryContext) -> Recovery:
    """The training of the student, not begun.

    Raises:
        InputError: it is not known which blocks of student and teacher correspond, or the decision
            does not hold what stages or updates need.
    """
    from tinyfusion.training.gradual import GradualRecovery  # imports Lightning
    from tinyfusion.training.recovery import Recovery

    student, teacher, decision = context.student, context.teacher, context.decision
    settings, stages = context.runner.settings(RECOVERY), objective.stages
    pairs, weights, first, fading, rates = [], None, None, None, None
    if isinstance(stages, FadeOut):
        fading = stages.fading(student, decision, settings.steps)
    if objective.updates is not None:
        rates = objective.updates.factors(decision)
        if fading is None:
            assert decision is not None  # the factors are by its scores
            rates = [rates[block] for block in decision.origins]
    if objective.uses_features:
        assert teacher is not None  # the objective has been checked
        cut = student if fading is None else prune(shape_copy(student), fading.decision)
        pairs = aligned_pairs(cut, teacher, decision)
        if objective.feature_scale == "teacher" and pairs:
            blocks = [block for _, block in pairs]
            sizes = context.state_sizes(teacher, blocks, objective.calibration_samples)
            weights = one_scale(sizes, blocks)
    if isinstance(stages, SeamsFirst):
        at = seams_of(student, teacher, decision) if context.at is None else context.at
        first = stages.first_stage(student, at, settings.steps)
    make = Recovery if fading is None else partial(GradualRecovery, fading=fading)
    return make(
        student,
        None if teacher is None else FrozenTeacher(teacher),
        objective,
        pairs,
        settings.ema_decay,
        weights,
        first,
        settings.ema_warm_up,
        rates,
        **context.runner.shared(RECOVERY, student),
    )


def state_sizes_of(runner: PhaseRunner, device: torch.device | str) -> StateSizes:
    """Measures hidden states on noised training images, on a device."""

    def sizes(net: Backbone, blocks: Sequence[int], samples: int) -> list[float]:
        calibration = calibration_batch(runner.process, runner.source, samples, runner.seed)
        return mean_squares(net.to(device), blocks, calibration)

    return sizes


def fresh_student(student: Backbone, expected: dict[str, Any] | None, seed: int) -> Backbone:
    """A network of the student's form with the start values of its class, by a seed.

    What a model's file does not record because it matters only for start values (such as
    ``gate_bias_init`` of a DiT) has its default, unless ``backbone=`` says otherwise: for the
    digits ``backbone=dit_digits`` gives the start that their teacher had.

    Args:
        student: the pruned network; left as it is.
        expected: family and arguments that ``backbone=`` says.
        seed: the run's seed.

    Returns:
        A network that still knows which blocks it stands for, so that it can be aligned.
    """
    arguments = {**(expected or {}), "backbone": family_of(student), **student.config()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "fresh_student"))
        fresh = build_backbone(arguments)
    fresh.kept_from, fresh.source_borders = student.kept_from, student.source_borders
    log.info(
        "recover: start=fresh: %s blocks with new start values, nothing of the source's",
        fresh.depth,
    )
    return fresh


@dataclass(frozen=True)
class Recovered:
    """The outcome of a recovery.

    Attributes:
        module: the last phase's module, trained.
        steps: optimiser steps of all phases.
        images: images that these steps have seen.
    """

    module: DenoiserTraining
    steps: int
    images: int

    @property
    def net(self) -> Backbone:
        """The student with its live weights; not the object given if that was sharded."""
        return self.module.trained_net

    def finished(self) -> Backbone:
        """The student, its live weights replaced by the averaged ones, in eval mode."""
        ((ema, trained),) = self.module.averages.values()
        ema.copy_to(trained)
        return self.net.eval()

    @contextmanager
    def averaged(self) -> Iterator[Backbone]:
        """Within this context the student holds the averaged weights."""
        ((ema, trained),) = self.module.averages.values()
        with ema.averaged(trained):
            yield self.net


def recover(
    recovery: Objective | PhasedRecovery,
    student: Backbone,
    teacher: Backbone | None,
    decision: Decision | None,
    runner: PhaseRunner,
    *,
    folder: Path,
    device: torch.device | str = "cpu",
) -> Recovered:
    """Train a pruned network.

    Args:
        recovery: see `recovery_phases`.
        student: the pruned network, or the whole one (`student_of`); trained in place.
        teacher: the network to distil from; ``None`` for none.
        decision: how the student was cut, or is to be, if known.
        runner: process, data and settings of phases.
        folder: where phases write.
        device: where hidden states are measured, if they are.

    Raises:
        InputError: student and teacher can't be compared.
    """
    sizes = state_sizes_of(runner, device)
    context = RecoveryContext(student, teacher, decision, runner, sizes)
    phases = recovery_phases(recovery, context)
    module = runner.run(phases, folder)[phases[-1].name]
    lengths = [runner.settings_of(phase) for phase in phases]
    images = sum(settings.steps * settings.batch_size for settings in lengths)
    return Recovered(module, sum(settings.steps for settings in lengths), images)
