"""Learning which blocks to keep (TinyFusion, arXiv 2412.01199, section 3).

Shape suffixes: B batch, K choices of all groups side by side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone
from tinyfusion.gating.gated_backbone import GatedBackbone
from tinyfusion.gating.gates import Gates, entropy, likeliest
from tinyfusion.training.ema import Ema
from tinyfusion.training.module import DenoiserTraining, Prepared
from tinyfusion.training.schedules import Linear
from tinyfusion.training.sharding import full

MOST_LOGGED = 8
"""Groups of more patterns than this have no curve for each pattern's probability."""


class DecisionState(NamedTuple):
    """Where the choice stands at one step.

    Attributes:
        kept: block indices by the moving average of the gates.
        kept_live: block indices by the live gates.
        choice: index of the most probable pattern, per group (average gates).
        choice_live: the same by the live gates.
        confidence: probability of the chosen pattern, per group (average gates).
        entropy: entropy of each group's distribution in nats (average gates).
        probabilities: distribution over the patterns, per group (average gates).
    """

    kept: tuple[int, ...]
    kept_live: tuple[int, ...]
    choice: list[int]
    choice_live: list[int]
    confidence: list[float]
    entropy: list[float]
    probabilities: list[list[float]]


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
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.gated = GatedBackbone(net, gates)
        self._gate_rate_factor = gate_rate_factor
        self._temperature, self._scale = temperature, scale
        decay = gate_decay(self.total_steps) if gate_ema_decay is None else gate_ema_decay
        # No warm-up: the average starts at the exactly uniform gates, which favour nothing.
        self.gate_ema = Ema(gates, decay, warm_up=False)
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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set temperature and scale for this step."""
        self._set_schedules(self.global_step)

    def step_losses(self, prepared: Prepared) -> dict[str, Tensor]:
        """Terms of the process's own loss under masks drawn per sample."""
        corrupted = prepared.corrupted
        gumbel_BK = self.noise.gumbel("gumbel", prepared.rows, self.gated.gates.num_choices)
        gumbel_BK = gumbel_BK.to(corrupted.clean.device)
        out = self.gated(corrupted.inputs, prepared.conditioning, gumbel_BK)
        # Under autocast the prediction is bfloat16, too coarse for the arithmetic of the loss.
        terms = self.process.loss(out.to(corrupted.clean.dtype), corrupted)
        return {"total": terms.pop("loss"), **terms}

    def after_step(self) -> None:
        """Log the state of the choice at the logger's steps: reading it waits for the device."""
        if not self.logs_now:
            return
        state, gates = self.decision_state(), self.gated.gates
        values: dict[str, float] = {
            "temperature": gates.temperature,
            "scale": gates.scale,
            "mean_confidence": sum(state.confidence) / len(state.confidence),
        }
        for index, probabilities in enumerate(state.probabilities):
            values[f"choice_{index}"] = float(state.choice[index])
            values[f"choice_live_{index}"] = float(state.choice_live[index])
            values[f"confidence_{index}"] = state.confidence[index]
            values[f"entropy_{index}"] = state.entropy[index]
            if len(probabilities) <= MOST_LOGGED:
                values |= {f"p_{index}_{pattern}": p for pattern, p in enumerate(probabilities)}
        self.log_dict({f"gates/{name}": value for name, value in values.items()})

    def decision_state(self) -> DecisionState:
        """The choice as it stands; called on all ranks together, as logits may be sharded."""
        gates = self.gated.gates
        shadow = self.gate_ema.shadow
        averaged = _on_cpu([full(shadow[f"groups.{i}.logits_C"]) for i in range(len(gates.groups))])
        live = _on_cpu(gates.logits())
        probabilities = gates.probabilities(averaged)
        return DecisionState(
            kept=gates.decide(averaged),
            kept_live=gates.decide(live),
            choice=likeliest(averaged),
            choice_live=likeliest(live),
            confidence=[float(p.max()) for p in probabilities],
            entropy=entropy(probabilities),
            probabilities=[p.tolist() for p in probabilities],
        )


def _on_cpu(logits: list[Tensor]) -> list[Tensor]:
    """The logits of all groups, copied in one transfer."""
    return list(torch.cat(logits).cpu().split([len(values) for values in logits]))
