"""Training a denoiser from its random start, with held-out loss to choose the length by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, predict
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.training.ema import Ema
from tinyfusion.training.module import DenoiserTraining, Prepared


class Pretraining(DenoiserTraining):
    """Minimise the process's loss over all weights.

    Args:
        net: the network to train.
        ema_decay: decay per step of the averaged weights.
        held_out: fixed held-out batch on which averaged weights are scored; ``None`` for none.
        held_out_every: steps between two scores.
        ema_warm_up: let the decay of the averaged weights grow over the first steps (see `Ema`).
        shared: arguments of `DenoiserTraining`.
    """

    trained = "net"

    def __init__(
        self,
        net: Backbone,
        ema_decay: float,
        held_out: HeldOutLoss | None,
        held_out_every: int,
        ema_warm_up: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.net = net
        self.ema = Ema(net, ema_decay, ema_warm_up)
        self.held_out = held_out
        self.held_out_every = held_out_every

    @property
    def averages(self) -> dict[str, tuple[Ema, Backbone]]:
        """The averaged network."""
        return {"net": (self.ema, self.net)}

    def step_losses(self, prepared: Prepared) -> dict[str, Tensor]:
        """Terms of the process's own loss."""
        out = predict(self.net, prepared.corrupted.inputs, prepared.conditioning)
        terms = self.process.loss(out.to(prepared.corrupted.clean.dtype), prepared.corrupted)
        return {"total": terms.pop("loss"), **terms}

    def after_step(self) -> None:
        """Score the averaged weights from time to time."""
        step = self.global_step
        due = step % self.held_out_every == 0 or step == self.total_steps
        if due and self.held_out is not None:
            scores = self.held_out_scores()
            self.log_dict(scores, logger=False)
            # Straight to the loggers: `log` keeps only what falls on a multiple of log_every.
            for logger in self.loggers:
                logger.log_metrics(scores, step)

    @torch.no_grad()
    def held_out_scores(self) -> dict[str, float]:
        """Held-out loss of the averaged and of the live weights; nothing on further ranks."""
        scores = {}
        for name, averaged in (("loss_live", False), ("loss", True)):
            with self.scored_net(averaged) as net:
                if net is not None:
                    assert self.held_out is not None
                    scores[f"held_out/{name}"] = self.held_out(net)["loss"]
        return scores
