"""Training a pruned network back to quality: what is checked, and which phases it takes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.meta import shape_copy
from tinyfusion.backbones.presets import build as build_backbone
from tinyfusion.backbones.presets import family_of
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.pipeline.budgets import Wanted
from tinyfusion.pipeline.pruning import planned
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.processes.contract import Process
from tinyfusion.pruners.contract import Pruner, calibration_batch
from tinyfusion.recovery.averaging import prune_averaged
from tinyfusion.recovery.fading import FadeOut
from tinyfusion.recovery.features import mean_squares, one_scale
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.origins import aligned_pairs, seams_of
from tinyfusion.recovery.stages import SeamsFirst
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.seeding import seed_of
from tinyfusion.surgery import prune
from tinyfusion.training.gradual import GradualRecovery
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.phases import Phase
from tinyfusion.training.recovery import Recovery
from tinyfusion.units import BLOCKS, BRANCHES

log = logging.getLogger(__name__)

RECOVERY = "recovery"
KEPT, FRESH, AVERAGED = "kept", "fresh", "averaged"
STARTS = (KEPT, FRESH, AVERAGED)

StateSizes = Callable[[Backbone, Sequence[int], int], list[float]]
"""``sizes(net, blocks, samples)``: mean square of the states after some blocks."""


class PhasedRecovery(Protocol):
    """A recovery that states its own phases, instead of minimising an `Objective` in one.

    Attributes:
        uses_teacher: whether a teacher is needed.
        starts_whole: whether it is given the whole network instead of the pruned one; may be left
            out.
    """

    uses_teacher: bool

    def check(self, student: Backbone, teacher: Backbone | None, process: Process) -> None:
        """Refuse networks that can't be compared, before any work.

        Args:
            student: the student, or the model that it is to be cut from.
            teacher: the network to distil from; ``None`` for none.
            process: the process.

        Raises:
            InputError: the networks don't suit this recovery.
        """

    def phases(self, context: RecoveryContext) -> Sequence[Phase]:
        """What is trained, in order.

        The module of the last one trains the student, of which it has one average.
        """


@dataclass(frozen=True)
class RecoveryContext:
    """What a recovery may use to state its phases.

    Attributes:
        student: the pruned network, or the whole one (`starts_whole`); trained in place.
        teacher: the network to distil from; ``None`` for none.
        decision: how the student was cut, or is to be, if known.
        runner: process, data and settings of phases.
        state_sizes: measures hidden states of the teacher.
        at: the student's blocks next to a removal; ``None`` finds them by `seams_of`.
    """

    student: Backbone
    teacher: Backbone | None
    decision: Decision | None
    runner: PhaseRunner
    state_sizes: StateSizes
    at: Sequence[int] | None = None


def check_recovery(
    recovery: Objective | PhasedRecovery,
    net: Backbone,
    teacher: Backbone | None,
    runner: PhaseRunner,
    start: str = KEPT,
    cuts_width: bool = False,
    decision: Decision | None = None,
) -> None:
    """Refuse a recovery that can't be, before any work.

    Args:
        recovery: what is minimised, or what states its phases.
        net: the student, or the model that it is to be cut from.
        teacher: the network to distil from.
        runner: process and settings of phases.
        start: what the student starts from: ``kept`` weights, ``fresh`` ones, or weights
            ``averaged`` over removed blocks.
        cuts_width: whether channels go instead of blocks.
        decision: how the student is cut, or is `expected` to be.

    Raises:
        InputError: networks that can't be compared, an unknown start, a batch that the devices
            can't share evenly, stages that a model without seams, or this length, can't have, or
            updates by scores that the decision does not hold.
    """
    if start not in STARTS:
        raise InputError(f"start={start!r} is not known; valid: {', '.join(STARTS)}")
    if start == AVERAGED and cuts_width:
        raise InputError(
            "start=averaged takes means of blocks, but a pruner of widths removes none; give "
            "start=kept"
        )
    if start == AVERAGED and decision is not None and _of_branches(decision):
        raise InputError(
            "start=averaged takes means of blocks that are alike, but here branches of blocks are "
            "chosen (units=branches); give start=kept"
        )
    if start != KEPT and starts_whole(recovery):
        raise InputError(
            f"start={start}: this recovery begins with the whole model, from which it removes "
            "blocks (stages=fade_out); give start=kept, or stages=none"
        )
    if not isinstance(recovery, Objective):
        recovery.check(net, teacher, runner.process)
        return
    settings = runner.settings(RECOVERY)
    if recovery.uses_features and cuts_width:
        raise InputError(
            "this recovery compares hidden states, whose width the student won't share with its "
            "teacher: widths are cut here, not blocks; give recovery=kd or recovery=finetune"
        )
    recovery.check(net, teacher, runner.process)
    if recovery.updates is not None:
        if start == FRESH:
            raise InputError(
                "start=fresh: all weights are new, so that no block is important yet; give "
                "updates=none, or start=kept"
            )
        if cuts_width:
            raise InputError(
                "updates=inverse_importance needs scores of blocks, which a pruner of widths does "
                "not give; give updates=none"
            )
        if decision is not None:
            recovery.updates.factors(decision)
    if recovery.stages is None:
        return
    if start == FRESH:
        raise InputError(
            "start=fresh: all weights are new, so there is nothing that stages= could "
            "train first; give stages=none, or start=kept"
        )
    if cuts_width:
        raise InputError(
            "stages= trains the blocks next to a removal first, or removes blocks in training, "
            "but a pruner of widths removes none; give stages=none"
        )
    recovery.stages.check(net, settings.steps)


def _of_branches(decision: Decision) -> bool:
    return bool(decision.removed) or decision.budget.get("units", BLOCKS) == BRANCHES


def expected(
    pruner: Pruner, net: Backbone, wanted: Wanted, recovery: Objective | PhasedRecovery
) -> Decision | None:
    """A decision such as the pruner will make, as far as a recovery can be validated against it.

    Its scores are all alike, under the names of those that the pruner gives. ``None`` if the pruner
    sets the number of units and does not say it by ``plan(net)``.

    Args:
        pruner: the pruner.
        net: the model.
        wanted: how much is to stay.
        recovery: what recovers the model.

    Raises:
        InputError: see `tinyfusion.pipeline.pruning.planned`.
    """
    if not getattr(pruner, "uses_keep", True) and not hasattr(pruner, "plan"):
        return None
    if wanted.latency is not None and getattr(pruner, "uses_keep", True):
        wanted.check(pruner)
        # How many that leaves is measured later: here as many as can be.
        wanted = Wanted(keep=len(net.units(wanted.units)) - 1, units=wanted.units)
    return with_scores(planned(pruner, net, wanted), pruner, recovery)


def with_scores(
    decision: Decision, pruner: Pruner, recovery: Objective | PhasedRecovery
) -> Decision:
    """A planned decision with scores, all alike, where those of the pruner will be.

    Of a pruner that does not say which it gives (``unit_scores``), those that the recovery wants.

    Args:
        decision: the decision.
        pruner: who will make it.
        recovery: what takes the scores.
    """
    wanted = getattr(getattr(recovery, "updates", None), "scores", None) or "scores"
    names = getattr(pruner, "unit_scores", (wanted,))
    return replace(decision, scores={name: [1.0] * (decision.source_depth or 0) for name in names})


def starts_whole(recovery: Objective | PhasedRecovery) -> bool:
    """Whether a recovery is given the whole network, of which it removes a part itself."""
    return getattr(recovery, "starts_whole", False)


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
