"""What a recovery is given, and what is refused of it before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tinyfusion.backbones.contract import Backbone
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.pipeline.budgets import Wanted
from tinyfusion.pipeline.pruning import foreseen
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.processes.contract import Process
from tinyfusion.pruners.contract import Pruner
from tinyfusion.recovery.objective import Objective
from tinyfusion.training.phases import Phase
from tinyfusion.units import BLOCKS, BRANCHES

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


def starts_whole(recovery: Objective | PhasedRecovery) -> bool:
    """Whether a recovery is given the whole network, of which it removes a part itself."""
    return getattr(recovery, "starts_whole", False)


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
        InputError: see `tinyfusion.pipeline.pruning.foreseen`.
    """
    decision = foreseen(pruner, net, wanted)
    return None if decision is None else with_scores(decision, pruner, recovery)


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
