"""Recovery that begins with the whole network and removes units while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from tinyfusion.backbones.contract import Backbone, BlockRunner
from tinyfusion.recovery.fading import Fading
from tinyfusion.surgery import prune
from tinyfusion.training.recovery import Recovery


class GradualRecovery(Recovery):
    """Train the whole network, of which units fade out and go (see `FadeOut`).

    What is left of each unit is a function of the step, so that an interrupted run needs no state
    to be resumed exactly. A unit that has gone is neither run nor trained, and the optimiser keeps
    nothing of it; its weights are dropped when training ends, so that strategies and resume
    checkpoints hold the same tensors from the first to the last step.

    Args:
        student: the whole network.
        fading: which units go at which step.
        arguments: of `Recovery`; ``pairs`` count in the finished student.

    Attributes:
        student: the whole network during training, the finished student after it.
    """

    leaves_unused = True

    def __init__(self, student: Backbone, *arguments: Any, fading: Fading, **named: Any) -> None:
        super().__init__(student, *arguments, **named)
        self.fading = fading
        teacher_depth = 0 if self.teacher is None else self.teacher.net.depth
        self._watched = list(fading.places(self.pairs, student, teacher_depth))
        self._is_cut = False

    @property
    def watched(self) -> list[int]:
        """Blocks of the whole network."""
        return self._watched

    def run_block(self) -> BlockRunner:
        """The network as it is at this step."""
        return self.fading.run_block(self.student, self.global_step)

    def record(self) -> dict[str, Any]:
        """As of every recovery, and what went when."""
        return {**super().record(), "fade_out": self.fading.record()}

    def notes(self) -> list[str]:
        """What goes when."""
        return [*super().notes(), self.fading.summary()]

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and let the optimiser forget blocks that have gone."""
        for index in self.fading.gone(self.global_step):
            for parameter in self.student.blocks[index].parameters():
                optimizer.state.pop(parameter, None)
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @contextmanager
    def scored_net(
        self, averaged: bool = True, all_ranks: bool = False
    ) -> Iterator[Backbone | None]:
        """The network without all units that will have gone in the end, at any step."""
        with super().scored_net(averaged, all_ranks) as net:
            yield net if net is None or self._is_cut else prune(net, self.fading.decision)

    def on_fit_end(self) -> None:
        """Leave the finished student, live and averaged."""
        super().on_fit_end()
        with self.ema.averaged(self.student):
            averaged = prune(self.student, self.fading.decision)
        self.student = prune(self.student, self.fading.decision)
        self.ema.shadow = {
            name: parameter.detach()
            for name, parameter in averaged.named_parameters()
            if parameter.requires_grad
        }
        self._is_cut = True
