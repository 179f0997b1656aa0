"""Training a network from its start values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyfusion.backbones.contract import Backbone
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.training.phases import Phase

if TYPE_CHECKING:
    from tinyfusion.training.pretrain import Pretraining

PRETRAIN = "pretrain"


def pretraining_phase(runner: PhaseRunner, net: Backbone, held_out: HeldOutLoss | None) -> Phase:
    """Training all weights of a network on the process's own loss.

    Args:
        runner: process, data and settings of phases.
        net: the network; trained in place.
        held_out: fixed held-out batch on which averaged weights are scored; ``None`` in a dry run.
    """

    def module() -> Pretraining:
        from tinyfusion.training.pretrain import Pretraining  # imports Lightning

        settings = runner.settings(PRETRAIN)
        shared = runner.shared(PRETRAIN, net)
        return Pretraining(
            net,
            settings.ema_decay,
            held_out,
            settings.held_out_every,
            settings.ema_warm_up,
            **shared,
        )

    return Phase(PRETRAIN, module)
