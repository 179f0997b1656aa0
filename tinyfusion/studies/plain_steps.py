"""The straightforward training loops: mask learning and recovery as the formulas say.

What the package's own steps are tested against and timed against: plain PyTorch in the published
order of steps, without Lightning. Each takes the same networks, process, draws and batches as its
counterpart, so that the two can be compared number for number.

Source: TinyFusion (arXiv 2412.01199), sections 3 and 4.4.

Shape suffixes: B batch, L units, K noise numbers, T tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from tinyfusion.backbones.contract import Backbone
from tinyfusion.data.datamodule import Batch, StepBatchSampler
from tinyfusion.data.source import ImageSource
from tinyfusion.processes.contract import Process
from tinyfusion.seeding import Rows, StepDraws, StepNoise
from tinyfusion.studies.plain_gates import PatternChoice, SubsetChoice
from tinyfusion.training.recipes import Distillation, GateValues
from tinyfusion.training.schedules import Linear
from tinyfusion.training.settings import TrainingSettings


class PlainLoop(ABC):
    """What both trainings do in a step: loss, gradients, clipping, AdamW, moving average.

    Args:
        groups: parameter groups of the optimiser.
        trained: trained tensors by name.
        process: the process.
        noise: source of all draws.
        settings: length and rates; warm-ups are not known.
        average_decay: decay per step of the moving average of everything trained.

    Attributes:
        average: moving average of the trained tensors, by name.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        trained: Mapping[str, nn.Parameter],
        process: Process,
        noise: StepNoise,
        settings: TrainingSettings,
        average_decay: float,
    ) -> None:
        self.process, self.noise, self.settings = process, noise, settings
        self.trained = {name: p for name, p in trained.items() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.average_decay = average_decay
        self.optimizer = AdamW(groups, lr=settings.learning_rate, weight_decay=0.0)
        end = settings.learning_rate_end
        self.schedule = (
            None if end is None else CosineAnnealingLR(self.optimizer, settings.steps, end)
        )

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The loss of one global batch."""

    def step(self, batch: Batch) -> float:
        """One optimiser step; the loss before it."""
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), self.settings.clip_norm)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.average[name].mul_(self.average_decay)
                self.average[name].add_(parameter, alpha=1 - self.average_decay)
        return loss.item()

    def prepare(self, batch: Batch, net: Backbone) -> tuple[Any, tuple[Tensor, ...]]:
        """What the process made of a batch, and the arguments of the networks' forwards."""
        draws = StepDraws(self.noise, batch.rows, batch.images.device)
        assert self.settings.label_drop is not None
        drop_B = draws.uniform("label_drop") < self.settings.label_drop
        told = batch.conditioning.drop(drop_B, net)
        corrupted = self.process.corrupt(batch.images, draws)
        return corrupted, (*corrupted.inputs, *told.arguments())

    def at(self, schedule: Linear, step: int) -> float:
        """Value at a step of a schedule that is linear up to the last step."""
        share = step / max(self.settings.steps - 1, 1)
        return schedule.start + share * (schedule.end - schedule.start)


class PlainMaskLearning(PlainLoop):
    """Gates and weight update, trained with every block run for every sample (section 3).

    As published, everything trained is averaged; the gates' average is what is decided by.

    Args:
        net: the network, with the weight update in it.
        gates: `PatternChoice` or `SubsetChoice`.
        values: how the gates are drawn and trained.
        further: process, noise and settings of `PlainLoop`.
    """

    def __init__(
        self, net: Backbone, gates: PatternChoice | SubsetChoice, values: GateValues, **further: Any
    ) -> None:
        rate = further["settings"].learning_rate
        update = [p for p in net.parameters() if p.requires_grad]
        faster = {"params": list(gates.parameters()), "lr": rate * values.gate_rate_factor}
        trained = {f"net.{name}": p for name, p in net.named_parameters()}
        trained |= {f"gates.{name}": p for name, p in gates.named_parameters()}
        groups = [{"params": update}, faster] if update else [faster]
        super().__init__(groups, trained, average_decay=values.gate_ema_decay, **further)
        self.net, self.gates, self.values = net, gates, values

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of the task under one mask per sample."""
        corrupted, arguments = self.prepare(batch, self.net)
        gumbel_BK = self.noise.gumbel("gumbel", batch.rows, self.gates.num_draws)
        keep_BL = self.gates(
            gumbel_BK.to(batch.images.device),
            self.at(self.values.temperature, batch.step),
            self.at(self.values.scale, batch.step),
        )

        def gated(index: int, block: nn.Module, h_BTD: Any, condition: Any) -> Tensor:
            m_B11 = keep_BL[:, index, None, None].to(h_BTD.dtype)
            return m_B11 * block(h_BTD, condition) + (1 - m_B11) * h_BTD

        out = self.net(*arguments, run_block=gated)
        return self.process.loss(out, corrupted)["loss"].mean()


class PlainRecovery(PlainLoop):
    """Training a pruned network by its task, its teacher's outputs and hidden states (4.4).

    Args:
        student: the pruned network.
        teacher: the network to distil from.
        pairs: (student block, teacher block) whose states are compared.
        objective: weights of the terms.
        further: process, noise and settings of `PlainLoop`.
    """

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        pairs: Sequence[tuple[int, int]],
        objective: Distillation,
        **further: Any,
    ) -> None:
        trained = dict(student.named_parameters())
        groups = [{"params": [p for p in trained.values() if p.requires_grad]}]
        super().__init__(groups, trained, average_decay=further["settings"].ema_decay, **further)
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.pairs, self.objective = pairs, objective

    def loss(self, batch: Batch) -> Tensor:
        """Weighted sum of the mean terms."""
        objective, process = self.objective, self.process
        corrupted, arguments = self.prepare(batch, self.student)
        out, states = _with_states(self.student, arguments)
        with torch.no_grad():
            wanted, wanted_states = _with_states(self.teacher, arguments)
        task = process.loss(out, corrupted)["loss"].mean()
        output = process.distillation_loss(out, wanted, corrupted, objective.variance_kl)["kd"]
        loss = objective.task_weight * task + objective.output_weight * output.mean()
        if not self.pairs:
            return loss
        distances = [
            masked_distance(
                states[a], wanted_states[b], objective.feature_mask, objective.num_sigmas
            )
            for a, b in self.pairs
        ]
        weight = self.at(Linear(objective.feature_weight, objective.feature_weight_end), batch.step)
        return loss + weight * torch.stack(distances).mean()


def _with_states(net: Backbone, arguments: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A network's prediction and the hidden states after each of its blocks."""
    states: list[Tensor] = []

    def kept(index: int, block: nn.Module, h_BTD: Any, condition: Any) -> Tensor:
        states.append(block(h_BTD, condition))
        return states[-1]

    return net(*arguments, run_block=kept), states


def masked_distance(
    student_BTD: Tensor, teacher_BTD: Tensor, mask: str, num_sigmas: float
) -> Tensor:
    """Mean squared distance of hidden states without massive activations (section 4.4).

    Args:
        student_BTD: the student's.
        teacher_BTD: the teacher's, same shape.
        mask: ``separate`` zeroes each side's own massive entries; ``intersection`` leaves out the
            entries that are massive on either side.
        num_sigmas: where massive entries begin, in standard deviations of their sample.
    """

    def ordinary(x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD.detach()
        mean_B11, std_B11 = x_BTD.mean((1, 2), keepdim=True), x_BTD.std((1, 2), keepdim=True)
        return ((x_BTD - mean_B11).abs() < num_sigmas * std_B11).to(x_BTD.dtype)

    mine_BTD, theirs_BTD = ordinary(student_BTD), ordinary(teacher_BTD)
    if mask == "separate":
        return ((mine_BTD * student_BTD - theirs_BTD * teacher_BTD) ** 2).mean()
    assert mask == "intersection"
    both_BTD = mine_BTD * theirs_BTD
    squares_BTD = both_BTD * (student_BTD - teacher_BTD) ** 2
    return (squares_BTD.sum((1, 2)) / both_BTD.sum((1, 2))).mean()


def plain_batches(
    source: ImageSource, noise: StepNoise, settings: TrainingSettings, device: torch.device | str
) -> Iterator[Batch]:
    """The global batches of a training, one per step: those that ours sees in one process."""
    order = StepBatchSampler(
        len(source), noise.seed, settings.steps, settings.batch_size, lambda: 0
    )
    for keys in order:
        step, first, _ = keys[0]
        rows = Rows(step, first, len(keys))
        images, told = source.fetch(torch.tensor([image for _, _, image in keys]), noise, rows)
        images = source.finish(images.to(device), noise, rows)
        yield Batch(images, told.to(device), step, first)
