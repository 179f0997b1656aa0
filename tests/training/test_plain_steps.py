"""Our trainings and sampling against the straightforward loops, number for number in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from tinyfusion.backbones.dit import DiT
from tinyfusion.budget import Budget
from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.source import ImageSource
from tinyfusion.gating.contract import Gates
from tinyfusion.gating.deltas import Frozen, Full, Lora
from tinyfusion.gating.draws import GumbelTopK
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.gating.unit_gates import UnitGates
from tinyfusion.pipeline.fit import fit
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.generate import generate
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.scheme import parse_scheme
from tinyfusion.seeding import SampleNoise, StepNoise
from tinyfusion.studies.plain_gates import PatternChoice, SubsetChoice, attach_low_rank
from tinyfusion.studies.plain_sampling import guided_samples
from tinyfusion.studies.plain_steps import (
    PlainLoop,
    PlainMaskLearning,
    PlainRecovery,
    plain_batches,
)
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.recipes import Distillation, GateValues, tinydit_d14
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import LearningRate, Linear
from tinyfusion.training.settings import TrainerSettings, TrainingSettings

STEPS, SEED = 6, 3
LORA_RANK, LORA_ALPHA = 2, 4.0
VALUES = GateValues(Linear(4.0, 0.1), Linear(100.0, 80.0), 10.0, 0.9)
SETTINGS = TrainingSettings(
    STEPS, 8, learning_rate=1e-3, clip_norm=0.5, label_drop=0.3, ema_decay=0.8, ema_warm_up=False
)


class Exact(ImageSource):
    """Images in float64 from another source."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.num_classes, self.channels, self.size = 2, source.channels, source.size

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: Tensor, augment: Any, rows: Any) -> tuple[Tensor, Any]:
        images, conditioning = self.source.fetch(indices, augment, rows)
        return images.double(), conditioning

    def held_out(self) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def reference(self) -> Tensor:
        raise NotImplementedError


class Watcher(Callback):
    """Keeps every step's loss, which Lightning logs in float32, and the norm of its gradient."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
        self.losses.append(loss.item())

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        self.norms.append(float(nn.utils.get_total_norm(gradients)))


@pytest.fixture
def train(source, tmp_path: Path) -> Callable[..., Watcher]:
    """``train(module, settings)``: what was seen while `fit` trained."""
    torch.set_num_threads(1)

    def run(module: DenoiserTraining, settings: TrainingSettings) -> Watcher:
        seen = Watcher()
        trainer = TrainerSettings("cpu", progress=False)
        fit(module, Exact(source), settings, trainer, tmp_path, "test", SEED, [], [seen])
        assert module.skipped_steps == 0
        assert max(seen.norms) > settings.clip_norm, "clipping matters"
        return seen

    return run


def shared(settings: TrainingSettings) -> dict[str, Any]:
    """Arguments of `DenoiserTraining`."""
    rate, end = settings.learning_rate, settings.learning_rate_end
    return {
        "process": GaussianDiffusion(),
        "noise": StepNoise(SEED, "test"),
        "total_steps": settings.steps,
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=rate, weight_decay=0.0),
        "learning_rate": LearningRate(rate, rate if end is None else end),
        "clip_norm": settings.clip_norm,
        "label_drop": settings.label_drop,
    }


def plain(settings: TrainingSettings) -> dict[str, Any]:
    """Arguments of `PlainLoop`."""
    noise = StepNoise(SEED, "test")
    return {"process": GaussianDiffusion(), "noise": noise, "settings": settings}


def steps_of(loop: PlainLoop, source: ImageSource) -> list[float]:
    """The losses of all steps."""
    batches = plain_batches(Exact(source), loop.noise, loop.settings, "cpu")
    return [loop.step(batch) for batch in batches]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float) -> None:
    """Compare tensors by name."""
    assert ours.keys() == theirs.keys() and ours
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].detach(), value.detach(), rtol=0, atol=atol, msg=name)


def exact(net: DiT, dtype: torch.dtype = torch.float64) -> DiT:
    """A network in float64 in which time and label matter to every block."""
    torch.manual_seed(2)
    for block in net.blocks:
        nn.init.normal_(block.adaLN_modulation[1].weight, std=0.2)
    return net.to(dtype)


def gates_of(kind: str) -> tuple[Gates, PatternChoice | SubsetChoice]:
    """Our gates and the straightforward ones of a network of four blocks."""
    if kind == "2 of 4":
        budget = Budget.of(DiT(4, 2, 1, 16, 4, 2, num_classes=2).units(), 2)
        return UnitGates(budget, GumbelTopK()).double(), SubsetChoice(4, 2).double()
    scheme = parse_scheme(kind, 4)
    return PatternGates(scheme).double(), PatternChoice(scheme).double()


def plain_names(net: nn.Module) -> dict[str, Tensor]:
    """Weights of a network of ours under the names of the straightforward one."""
    return {
        name.replace(".lora_A.default.weight", ".a")
        .replace(".lora_B.default.weight", ".b")
        .replace(".base_layer.", ".base."): value
        for name, value in net.named_parameters()
    }


@pytest.mark.parametrize("delta", ["lora", "full", "frozen"])
@pytest.mark.parametrize("kind", ["1:2", "2:4", "2 of 4"])
def test_mask_learning(make_net, source, train, kind: str, delta: str) -> None:
    ours, theirs = exact(make_net()), exact(make_net())
    {"lora": Lora(LORA_RANK, LORA_ALPHA), "full": Full(), "frozen": Frozen()}[delta].attach(ours)
    if delta == "lora":
        attach_low_rank(theirs, LORA_RANK, LORA_ALPHA)
        starts = plain_names(ours)
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                parameter.copy_(starts[name])
    elif delta == "frozen":
        theirs.requires_grad_(False)
    gates, plain_gates = gates_of(kind)
    before = {name: value.detach().clone() for name, value in theirs.named_parameters()}

    module = MaskLearning(
        ours,
        gates,
        VALUES.gate_rate_factor,
        VALUES.temperature,
        VALUES.scale,
        VALUES.gate_ema_decay,
        **shared(SETTINGS),
    )
    seen = train(module, SETTINGS)
    loop = PlainMaskLearning(theirs, plain_gates, VALUES, **plain(SETTINGS))
    losses = steps_of(loop, source)

    assert seen.losses == pytest.approx(losses, rel=0, abs=1e-9)
    same(plain_names(module.trained_net), dict(theirs.named_parameters()), 1e-7)
    moved = [not torch.equal(v, before[name]) for name, v in theirs.named_parameters()]
    assert any(moved) == (delta != "frozen")
    logits, averaged = list(plain_gates.parameters()), list(module.gate_ema.shadow.values())
    for number, (mine, theirs_L) in enumerate(zip(gates.parameters(), logits, strict=True)):
        assert (theirs_L - 0.02).abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs_L, rtol=0, atol=1e-7)
        name = [name for name in loop.average if name.startswith("gates.")][number]
        torch.testing.assert_close(averaged[number], loop.average[name], rtol=0, atol=1e-7)


OBJECTIVES = {
    "kd": Distillation(0.1, 0.9, False, 0.0, 0.0, "none", 2.0),
    "published": tinydit_d14.objective,
    "separate": replace(tinydit_d14.objective, feature_weight=0.5, feature_weight_end=0.1),
    "intersection": Distillation(0.3, 0.7, False, 0.5, 0.1, "intersection", 1.0),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_recovery(make_net, source, train, name: str) -> None:
    objective = OBJECTIVES[name]
    settings = replace(SETTINGS, learning_rate_end=1e-4)
    pairs = [(0, 1), (1, 3)] if objective.feature_weight else []
    ours, theirs, teacher = (exact(make_net(depth)) for depth in (2, 2, 4))
    module = Recovery(
        ours,
        FrozenTeacher(teacher),
        Objective(**vars(objective)),
        pairs,
        settings.ema_decay,
        ema_warm_up=False,
        **shared(settings),
    )
    seen = train(module, settings)
    loop = PlainRecovery(theirs, teacher, pairs, objective, **plain(settings))
    losses = steps_of(loop, source)

    assert seen.losses == pytest.approx(losses, rel=0, abs=1e-9)
    same(dict(ours.named_parameters()), dict(theirs.named_parameters()), 1e-7)
    same(module.ema.shadow, loop.average, 1e-7)
    start = dict(exact(make_net(2)).named_parameters())
    assert all(not torch.equal(p, start[name]) for name, p in loop.trained.items())


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("channels", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_guided_sampling(dtype: torch.dtype, channels: int | None, clip: bool) -> None:
    net = exact(DiT(4, 2, 2, 16, 3, 2, num_classes=3, gate_bias_init=0.5), dtype).eval()
    nn.init.normal_(net.final_layer.linear.weight, std=0.1)
    process, labels = GaussianDiffusion(clip=clip), ClassLabels(torch.tensor([0, 2, 1, 1]))
    steps, scale = 10, 1.5
    sampler, guidance = AncestralSampler(steps), Guidance(scale, channels)
    ours = generate(net, process, sampler, labels, SEED, guidance)
    noise = SampleNoise(SEED, range(4), (2, 4, 4))
    theirs = guided_samples(net, process, noise, labels, scale, channels, steps)
    assert ours.dtype == theirs.dtype == dtype and ours.std() > 0.1
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    plain_noise = SampleNoise(SEED, range(4), (2, 4, 4))
    unguided = guided_samples(net, process, plain_noise, labels, 1.0, channels, steps)
    assert (unguided - theirs).abs().max() > 1e-3, "guidance matters"
