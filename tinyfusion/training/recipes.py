"""The published recipes as data, and what a run does differently.

Every published hyper-parameter stands here and nowhere else: configuration files refer to it as
``${tinyfusion.recipe:NAME.FIELD}``, Python as ``tinyfusion.recipes.NAME.FIELD``. Parts are named
like the arguments that take them: ``Lora(**asdict(tinydit_d14.lora))``.

Source: TinyFusion (arXiv 2412.01199), tables 2, 6 and 7, and its official code, which is for DiT.
How the masks of SiT and MAR were learned was not published: as for DiT is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from tinyfusion.errors import InputError
from tinyfusion.scheme import EVEN
from tinyfusion.training.phase_settings import TrainingSettings
from tinyfusion.training.schedules import Linear

IMAGENET_IMAGES = 1_281_167
"""Training images of ImageNet-1k, on which the recipes were published."""


@dataclass(frozen=True)
class GateValues:
    """How the gates of mask learning are drawn and trained.

    Attributes:
        temperature: of the Gumbel-softmax.
        scale: what the logits are multiplied by.
        gate_rate_factor: learning rate of the gates over that of the weights.
        gate_ema_decay: decay per step of the averaged gates.
    """

    temperature: Linear
    scale: Linear
    gate_rate_factor: float
    gate_ema_decay: float


@dataclass(frozen=True)
class LowRank:
    """Arguments of `tinyfusion.gating.deltas.Lora`: the update learned together with the mask."""

    rank: int
    alpha: float
    dropout: float


@dataclass(frozen=True)
class AdamW:
    """Arguments of `torch.optim.AdamW`."""

    betas: tuple[float, float]
    weight_decay: float


@dataclass(frozen=True)
class Distillation:
    """Arguments of `tinyfusion.recovery.objective.Objective`."""

    task_weight: float
    output_weight: float
    variance_kl: bool
    feature_weight: float
    feature_weight_end: float
    feature_mask: str
    num_sigmas: float


@dataclass(frozen=True)
class Ancestral:
    """Arguments of `tinyfusion.samplers.ancestral.AncestralSampler`."""

    steps: int


@dataclass(frozen=True)
class EulerMaruyama:
    """Arguments of `tinyfusion.samplers.sde.SDESampler`."""

    method: str
    steps: int
    diffusion_form: str
    diffusion_norm: float
    last_step: str
    last_step_size: float


@dataclass(frozen=True)
class Autoregressive:
    """Arguments of `tinyfusion.samplers.autoregressive.AutoregressiveSampler`."""

    iterations: int
    head_steps: int
    temperature: float
    guidance_schedule: str


@dataclass(frozen=True)
class GuidanceValues:
    """Arguments of `tinyfusion.samplers.guidance.Guidance`."""

    scale: float
    channels: int | None


@dataclass(frozen=True)
class Recipe:
    """One published student.

    Attributes:
        source: preset of the network that is pruned, which is the teacher as well.
        student: preset of the network that is left.
        scheme: groups of blocks; ``"even"`` if they follow from a number of blocks.
        optimizer: the optimiser of both phases.
        mask_learning: length, batch and rates of mask learning.
        gates: how its gates are drawn and trained.
        lora: the weight update that is learned with them.
        recovery: length, batch and rates of the recovery.
        further_steps: other published lengths of the recovery, in optimiser steps.
        objective: what the recovery minimises.
        sampler: arguments of the sampler of the network's process.
        guidance: classifier-free guidance.
        num_samples: images per score.
    """

    source: str
    student: str
    scheme: str | tuple[tuple[int, int], ...]
    optimizer: AdamW
    mask_learning: TrainingSettings
    gates: GateValues
    lora: LowRank
    recovery: TrainingSettings
    further_steps: tuple[int, ...]
    objective: Distillation
    sampler: Ancestral | EulerMaruyama | Autoregressive
    guidance: GuidanceValues
    num_samples: int


tinydit_d14 = Recipe(
    source="dit_xl_2",
    student="dit_xl_2_d14",
    scheme="1:2",
    optimizer=AdamW(betas=(0.9, 0.999), weight_decay=0.0),
    mask_learning=TrainingSettings(
        steps=10_009,  # one epoch of ImageNet
        batch_size=128,
        learning_rate=1e-4,
        learning_rate_end=None,
        warm_up=0,
        clip_norm=1.0,
        label_drop=0.1,
    ),
    gates=GateValues(
        temperature=Linear(4.0, 0.1),
        scale=Linear(100.0, 100.0),
        gate_rate_factor=10.0,
        gate_ema_decay=0.999,
    ),
    lora=LowRank(rank=8, alpha=16.0, dropout=0.0),
    recovery=TrainingSettings(
        steps=100_000,  # 20 epochs
        batch_size=256,
        learning_rate=2e-4,
        learning_rate_end=1e-4,
        warm_up=0,
        clip_norm=1.0,
        label_drop=0.1,
        ema_decay=0.9999,
        ema_warm_up=False,
    ),
    further_steps=(500_000,),
    objective=Distillation(
        task_weight=0.1,  # alpha_gt
        output_weight=0.9,  # alpha_kd
        variance_kl=True,
        feature_weight=1e-2,  # beta, which falls linearly
        feature_weight_end=0.0,
        feature_mask="separate",  # the reference code's reading
        num_sigmas=2.0,
    ),
    sampler=Ancestral(steps=250),
    guidance=GuidanceValues(scale=1.5, channels=3),
    num_samples=50_000,
)
# Table 6 prints 1:2, which can't keep 19 of 28; the published pairs of student and teacher blocks
# reveal these groups.
tinydit_d19 = replace(
    tinydit_d14,
    student="dit_xl_2_d19",
    scheme=((3, 4), (3, 4), (2, 4), (3, 4), (2, 4), (3, 4), (3, 4)),
)
tinydit_d7 = replace(tinydit_d14, source="dit_xl_2_d14", student="dit_xl_2_d7")
# Table 7: 28 -> 14 -> 7 blocks on a quick protocol.
tinydit_d7_iterative = replace(
    tinydit_d7,
    scheme=EVEN,
    recovery=replace(tinydit_d14.recovery, steps=10_000),
    further_steps=(),
    sampler=Ancestral(steps=64),
    num_samples=10_000,
)
# SiT's own published sampler; the guidance of DiT is SiT's, too.
tinysit_d14 = replace(
    tinydit_d14,
    source="sit_xl_2",
    student="sit_xl_2_d14",
    recovery=replace(tinydit_d14.recovery, steps=500_000),  # 100 epochs
    further_steps=(),
    # A SiT predicts no variance; its beta is smaller than that of DiT and MAR.
    objective=replace(tinydit_d14.objective, variance_kl=False, feature_weight=2e-4),
    sampler=EulerMaruyama(
        method="euler",
        steps=250,
        diffusion_form="sigma",
        diffusion_norm=1.0,
        last_step="mean",
        last_step_size=0.04,
    ),
)
# MAR-L's own sampler and guidance, which grows linearly over the iterations; its published scores
# were measured with 256 iterations.
tinymar_d16 = replace(
    tinydit_d14,
    source="mar_large",
    student="mar_large_d16",
    recovery=replace(tinydit_d14.recovery, steps=200_000),  # 40 epochs
    further_steps=(),
    sampler=Autoregressive(
        iterations=64, head_steps=100, temperature=1.0, guidance_schedule="linear"
    ),
    guidance=GuidanceValues(scale=3.0, channels=None),
)

STUDENTS: Mapping[str, Recipe] = MappingProxyType(
    {
        "tinydit_d14": tinydit_d14,
        "tinydit_d19": tinydit_d19,
        "tinydit_d7": tinydit_d7,
        "tinydit_d7_iterative": tinydit_d7_iterative,
        "tinysit_d14": tinysit_d14,
        "tinymar_d16": tinymar_d16,
    }
)
"""All recipes by name."""

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {"tinyfusion": tinydit_d14, "tinyfusion_sit": tinysit_d14, "tinyfusion_mar": tinymar_d16}
)
"""What ``training.recipe`` can name: a recipe of each family, whose training its students share."""


def published(name: str) -> Any:
    """A published value by its dotted name, as plain data.

    Args:
        name: such as ``tinydit_d14.recovery.steps``.

    Raises:
        InputError: no recipe has a value of this name.
    """
    student, *fields = name.split(".")
    value: Any = STUDENTS.get(student, _NOTHING)
    for key in fields:
        value = getattr(value, key, _NOTHING)
    if isinstance(value, tuple):
        return [list(item) if isinstance(item, tuple) else item for item in value]
    if not isinstance(value, str | int | float | None):
        raise InputError(
            f"${{tinyfusion.recipe:{name}}} is no published value; valid: RECIPE.PART.VALUE, where "
            f"RECIPE is one of {', '.join(STUDENTS)}"
        )
    return value


_NOTHING = object()


def differences(
    recipe: str, phase: str, steps: int, batch_size: int, rates: Mapping[str, float | None]
) -> list[str]:
    """Where a phase departs from a recipe, one line each.

    Args:
        recipe: one of `RECIPES`.
        phase: name of the phase; one that the recipe does not have differs in nothing.
        steps: the phase's optimiser steps.
        batch_size: its global batch.
        rates: whatever of the recipe's other values the phase has, by name;
            ``learning_rate_end`` equals ``learning_rate`` where that is constant.

    Returns:
        Lines that name the value found, the published one and, for a schedule of fewer steps,
        what that does to the averaged weights.
    """
    if phase not in ("mask_learning", "recovery"):
        return []
    published: TrainingSettings = getattr(RECIPES[recipe], phase)
    lengths = (published.steps, *(RECIPES[recipe].further_steps if phase == "recovery" else ()))
    lines = []
    if batch_size != published.batch_size:
        lines.append(f"batch_size={batch_size} instead of {published.batch_size}")
    if steps not in lengths:
        wanted = " or ".join(f"{value:,}" for value in lengths)
        fewer = _fewer(steps, batch_size, lengths, published.batch_size)
        lines.append(f"steps={steps:,} instead of {wanted}{fewer}")
    for name, value in _rates(published, phase, RECIPES[recipe].optimizer).items():
        if name in rates and rates[name] != value:
            lines.append(f"{name}={_as_text(rates[name])} instead of {_as_text(value)}")
    return lines


def _rates(settings: TrainingSettings, phase: str, optimizer: AdamW) -> dict[str, float | None]:
    end = settings.learning_rate_end
    rates: dict[str, float | None] = {
        "learning_rate": settings.learning_rate,
        "learning_rate_end": settings.learning_rate if end is None else end,
        "warm_up": settings.warm_up,
        "clip_norm": settings.clip_norm,
        "label_drop": settings.label_drop,
        "weight_decay": optimizer.weight_decay,
    }
    if phase == "recovery":  # mask learning averages its gates, by a decay of their own
        rates |= {"ema_decay": settings.ema_decay, "ema_warm_up": settings.ema_warm_up}
    return rates


def _fewer(steps: int, batch_size: int, lengths: Sequence[int], published_batch: int) -> str:
    """Consequence of fewer steps than any published length, for a message; else empty."""
    if steps >= min(lengths):
        return ""
    images = steps * batch_size
    # The published length that shows as many images, if there is one, is what was meant.
    meant = min(lengths, key=lambda value: abs(value * published_batch - images))
    same = abs(images / (meant * published_batch) - 1) < 0.05
    # Without it the nearest published length is the shortest.
    meant = meant if same else min(lengths)
    ratio = meant / steps
    seen = "the same images in" if same else f"{images:,} images in"
    return (
        f": {seen} fewer steps are another recipe, the averaged weights see {ratio:.1f} times "
        "fewer updates; keep steps and batch_size, and fit the batch to the machine by "
        "trainer.micro_batch"
    )


def _as_text(value: float | None) -> str:
    """A value as configurations write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else f"{value:g}"
