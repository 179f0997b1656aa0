"""Learning which blocks to keep (TinyFusion, arXiv 2412.01199, section 3).

Shape suffixes: B batch, K noise numbers of the gates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone
from tinyfusion.gating.contract import Gates, GateState, on_cpu
from tinyfusion.gating.gated_backbone import GatedBackbone
from tinyfusion.training.early_stop import EarlyStop
from tinyfusion.training.ema import Ema
from tinyfusion.training.module import DenoiserTraining, Prepared
from tinyfusion.training.schedules import Linear
from tinyfusion.units import Unit

log = logging.getLogger(__name__)


class DecisionState(NamedTuple):
    """Where the choice stands at one step.

    Attributes:
        averaged: by the moving average of the gates, which is what is decided by.
        live: by the live gates.
    """

    averaged: GateState
    live: GateState


def gate_decay(total_steps: int, longest: float = 0.999) -> float:
    """Decay of the gates' moving average for a run of ``total_steps``.

    The average looks back over a tenth of the run: 0.999 at the paper's 10,009 steps, and
    proportionally shorter memory in shorter runs, where 0.999 would hardly leave the start.
    """
    return min(longest, max(0.0, 1.0 - 10.0 / total_steps))


class MaskLearning(DenoiserTraining):
    """Train gates and weight update together on the task loss of sampled sub-networks.

    Args:
        net: the pretrained network with the weight update already attached (`gating.deltas`).
        gates: the gates.
        gate_rate_factor: rate of the gates over the base rate.
        temperature: Gumbel-softmax temperature over the run.
        scale: factor from logits to log-probabilities over the run.
        gate_ema_decay: decay of the gates' average; ``None`` follows the run's length.
        units: what is chosen among, see `GatedBackbone`.
        stop: when it may end early; ``None`` for never.
        settle: probability of a unit's less likely outcome, by averaged and live gates, below
            which it is decided (`Gates.settle`); looked at every fiftieth of the run. ``None``
            for never.
        dense: see `GatedBackbone`.
        gate_gradients: see `GatedBackbone`.
        shared: arguments of `DenoiserTraining`.
    """

    discards_network = True
    trained = "gated"

    def __init__(
        self,
        net: Backbone,
        gates: Gates,
        gate_rate_factor: float,
        temperature: Linear,
        scale: Linear,
        gate_ema_decay: float | None,
        units: Sequence[Unit] | None = None,
        stop: EarlyStop | None = None,
        settle: float | None = None,
        dense: bool = False,
        gate_gradients: float = 1.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.gated = GatedBackbone(net, gates, units, dense, gate_gradients)
        self._gate_rate_factor = gate_rate_factor
        self._temperature, self._scale = temperature, scale
        decay = gate_decay(self.total_steps) if gate_ema_decay is None else gate_ema_decay
        # No warm-up: the average starts at the exactly uniform gates, which favour nothing.
        self.gate_ema = Ema(gates, decay, warm_up=False)
        self._stop, self._settle = stop, settle
        # Units that are decided against are no longer run.
        self.leaves_unused = settle is not None
        # The decision at the last look, and the step since which it has been that.
        self._stood: tuple[tuple[int, ...], int] = ((), 0)
        self.ended_early = False
        self._set_schedules(0)

    @property
    def averages(self) -> dict[str, tuple[Ema, nn.Module]]:
        """The averaged gates; the weight update is thrown away and needs no average."""
        return {"gates": (self.gate_ema, self.gated.gates)}

    def net_within(self, trained: nn.Module) -> Backbone:
        """The network under the gates."""
        assert isinstance(trained, GatedBackbone)
        return trained.net

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weight update at the base rate, gates faster; clipped together."""
        base = self._learning_rate.peak
        gates = {"params": list(self.gated.gates.parameters()), "lr": base * self._gate_rate_factor}
        delta = [p for p in self.gated.net.parameters() if p.requires_grad]
        return [{"params": delta, "lr": base}, gates] if delta else [gates]

    def _set_schedules(self, step: int) -> None:
        self.gated.gates.temperature = self._temperature(step, self.total_steps)
        self.gated.gates.scale = self._scale(step, self.total_steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the schedules too: a finished run that is resumed takes no further step."""
        super().on_load_checkpoint(checkpoint)
        self._set_schedules(max(0, checkpoint["global_step"] - 1))
        state = checkpoint["tinyfusion"]
        stood = state["settled"]
        self._stood, self.ended_early = (tuple(stood["kept"]), stood["since"]), stood["ended"]
        # Not there in checkpoints of earlier versions.
        self.gated.gates.settled = dict(state.get("settled_units", {}))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep since when the decision has stood, and what of it is settled, too."""
        super().on_save_checkpoint(checkpoint)
        kept, since = self._stood
        stood = {"kept": list(kept), "since": since, "ended": self.ended_early}
        units = dict(self.gated.gates.settled)
        checkpoint["tinyfusion"] |= {"settled": stood, "settled_units": units}

    def on_train_start(self) -> None:
        """Take no further step where the run had ended early."""
        super().on_train_start()
        if self.ended_early:
            # Lightning would take one more step before it looks at ``should_stop``.
            self.trainer.fit_loop.epoch_loop.max_steps = self.global_step

    def on_fit_end(self) -> None:
        """Give gates that were sharded, and are new objects now, what is no parameter of theirs."""
        settled = self.gated.gates.settled
        super().on_fit_end()
        self.gated.gates.settled = settled
        self._set_schedules(max(0, self.global_step - 1))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set temperature and scale for this step."""
        self._set_schedules(self.global_step)

    def step_losses(self, prepared: Prepared) -> dict[str, Tensor]:
        """Terms of the process's own loss under masks drawn per sample."""
        corrupted = prepared.corrupted
        gumbel_BK = self.noise.gumbel("gumbel", prepared.rows, self.gated.gates.num_draws)
        gumbel_BK = gumbel_BK.to(corrupted.clean.device)
        sampled_BL, share = None, self.gated.gate_gradients
        if share < 1 and not self.gated.dense:
            sampled_BL = self.noise.uniform("gate_gradients", prepared.rows, self.gated.gates.count)
            sampled_BL = (sampled_BL < share).to(gumbel_BK.device)
        out = self.gated(corrupted.inputs, prepared.conditioning, gumbel_BK, sampled_BL)
        # Under autocast the prediction is bfloat16, too coarse for the arithmetic of the loss.
        terms = self.process.loss(out.to(corrupted.clean.dtype), corrupted)
        loss, penalty = terms.pop("loss"), self.gated.gates.penalty
        if penalty is None:
            return {"total": loss, **terms}
        return {"total": loss + penalty, "penalty": penalty, **terms}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step; settle units, and end the run if the decision is made.

        Done here, because callbacks that save and draw come before the module's other hooks.
        """
        step = self.global_step + 1
        super().optimizer_step(*args, **kwargs)
        stop, total = self._stop, self.total_steps
        if step == total:
            return
        if self._settle is not None and step % max(1, total // 50) == 0:
            self._settle_units(self._settle, step)
        if self.ended_early or stop is None or step % stop.every(total):
            return
        averaged = self.decision_state().averaged
        kept, since = self._stood
        if averaged.kept != kept:
            self._stood = (averaged.kept, step)
        elif step - since >= stop.steps(total) and averaged.margin >= stop.margin:
            stood = f"the choice has stood for {step - since:,}, margin {averaged.margin:.3f}"
            self._end_early(step, stood)

    def _end_early(self, step: int, why: str) -> None:
        self.ended_early = self.trainer.should_stop = True
        steps = f"{step:,} of {self.total_steps:,} steps"
        log.info("%s: decided after %s: %s", self.noise.phase, steps, why)

    def _settle_units(self, below: float, step: int) -> None:
        """Settle what can be; where that is all, the run is over."""
        gates = self.gated.gates
        found, settled = gates.settle(self.decision_state(), below), len(gates.settled)
        if found:
            phase, of_all = self.noise.phase, f"{settled} of {gates.count}"
            log.info("%s: step %s: %s units are settled", phase, f"{step:,}", of_all)
        if settled == gates.count:
            self._end_early(step, "all units are settled")

    @property
    def logs_now(self) -> bool:
        """Whether the step just taken is one of those that are logged; the last always is."""
        return self.ended_early or super().logs_now

    def after_step(self) -> None:
        """Log the state of the choice at the logger's steps: reading it waits for the device."""
        if not self.logs_now:
            return
        state, gates = self.decision_state(), self.gated.gates
        values = {
            "temperature": gates.temperature,
            "scale": gates.scale,
            "margin": state.averaged.margin,
            "settled": float(len(gates.settled)),
            "margin_live": state.live.margin,
            "kept_alike": float(len(set(state.averaged.kept) & set(state.live.kept))),
        }
        self.log_dict({f"gates/{name}": value for name, value in values.items()})

    def decision_state(self) -> DecisionState:
        """The choice as it stands; called on all ranks together, as logits may be sharded."""
        gates = self.gated.gates
        names = [name for name, _ in gates.named_parameters()]
        averaged = on_cpu([self.gate_ema.shadow[name] for name in names])
        return DecisionState(gates.state(averaged), gates.state(gates.logits()))
