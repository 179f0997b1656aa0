"""Published training recipes as data, and what a run does differently.

Imports nothing outside the standard library, so that settings can name a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1_000
"""Training images and classes of ImageNet-1k, on which the recipes were published."""

Value = float | None


class Recipe(NamedTuple):
    """One published stage.

    Attributes:
        steps: lengths that were published, in optimiser steps.
        batch_size: images per optimiser step over all devices.
        values: other settings by the name they have in the configuration.
    """

    steps: tuple[int, ...]
    batch_size: int
    values: Mapping[str, Value]


# TinyFusion (arXiv 2412.01199): table 6 and its official code, which is of DiT. For SiT and MAR no
# mask learning was published; it is taken to be the same.
_MASK_LEARNING = Recipe(
    steps=(10_009,),  # one epoch of ImageNet
    batch_size=128,
    values={
        "learning_rate": 1e-4,
        "learning_rate_end": 1e-4,
        "warm_up": 0,
        "clip_norm": 1.0,
        "label_drop": 0.1,
        "weight_decay": 0.0,
    },
)


def _recovery(*steps: int) -> Recipe:
    """Recovery of table 6; at batch 256, 100,000 steps are 20 epochs of ImageNet."""
    return Recipe(
        steps=steps,
        batch_size=256,
        values={
            "learning_rate": 2e-4,
            "learning_rate_end": 1e-4,
            "warm_up": 0,
            "clip_norm": 1.0,
            "label_drop": 0.1,
            "weight_decay": 0.0,
            "ema_decay": 0.9999,
        },
    )


RECIPES: dict[str, dict[str, Recipe]] = {
    "tinyfusion": {
        "mask_learning": _MASK_LEARNING,
        "recovery": _recovery(100_000, 500_000),
    },
    # Table 2: 100 epochs for TinySiT-D14 and 40 for TinyMAR-D16.
    "tinyfusion_sit": {"mask_learning": _MASK_LEARNING, "recovery": _recovery(500_000)},
    "tinyfusion_mar": {"mask_learning": _MASK_LEARNING, "recovery": _recovery(200_000)},
}
"""Published stages by recipe and stage."""

# TinyFusion, table 6: loss weights of masked distillation; beta falls to 0 linearly.
_RECOVERY_WEIGHTS: dict[str, float] = {
    "task_weight": 0.1,
    "output_weight": 0.9,
    "feature_weight": 1e-2,
    "feature_weight_end": 0.0,
    "num_sigmas": 2.0,
}
RECOVERY_WEIGHTS: dict[str, dict[str, float]] = {
    "tinyfusion": _RECOVERY_WEIGHTS,
    "tinyfusion_sit": _RECOVERY_WEIGHTS | {"feature_weight": 2e-4},
    "tinyfusion_mar": _RECOVERY_WEIGHTS,
}
"""What the published recoveries minimise, by recipe."""

# TinyFusion's official code, mask learning.
TINYFUSION_GATES = {
    "temperature": (4.0, 0.1),
    "scale": (100.0, 100.0),
    "gate_rate_factor": 10.0,
    "ema_decay": 0.999,
    "lora_rank": 8,
    "lora_alpha": 16.0,
}

SCHEMES: dict[str, str | list[list[int]]] = {
    "tinydit_d14": "1:2",
    # Table 6 prints 1:2, which can't keep 19 of 28; the published pairs of student and teacher
    # blocks reveal these groups.
    "tinydit_d19": [[3, 4], [3, 4], [2, 4], [3, 4], [2, 4], [3, 4], [3, 4]],
    "tinydit_d7": "1:2",
    "tinysit_d14": "1:2",
    "tinymar_d16": "1:2",
}
"""Groups of the published students."""


def differences(recipe: str, stage: str, found: Mapping[str, Value]) -> list[str]:
    """What a stage does otherwise than a recipe, one line each.

    Args:
        recipe: one of `RECIPES`.
        stage: name of the stage; one that the recipe does not have differs in nothing.
        found: the stage's ``steps``, ``batch_size`` and whatever of the recipe's other values
            the stage has.

    Returns:
        Lines that name the value found, the published one and, for a schedule of fewer steps,
        what that does to the averaged weights.
    """
    published = RECIPES[recipe].get(stage)
    if published is None:
        return []
    lines = []
    steps, batch_size = int(found["steps"]), int(found["batch_size"])
    if batch_size != published.batch_size:
        lines.append(f"batch_size={batch_size} instead of {published.batch_size}")
    if steps not in published.steps:
        wanted = " or ".join(f"{value:,}" for value in published.steps)
        lines.append(f"steps={steps:,} instead of {wanted}{_fewer(steps, batch_size, published)}")
    for name, value in published.values.items():
        if name in found and found[name] != value:
            lines.append(f"{name}={_shown(found[name])} instead of {_shown(value)}")
    return lines


def _fewer(steps: int, batch_size: int, published: Recipe) -> str:
    """What fewer steps do, in words; empty if there are not fewer than in any published length."""
    if steps >= min(published.steps):
        return ""
    images = steps * batch_size
    # The published length that shows as many images, if there is one, is what was meant.
    meant = min(published.steps, key=lambda value: abs(value * published.batch_size - images))
    same = abs(images / (meant * published.batch_size) - 1) < 0.05
    # Without it the nearest published length is the shortest.
    meant = meant if same else min(published.steps)
    ratio = meant / steps
    seen = "the same images in" if same else f"{images:,} images in"
    return (
        f": {seen} fewer steps are another recipe, the averaged weights see {ratio:.1f} times "
        "fewer updates; keep steps and batch_size, and fit the batch to the machine by "
        "trainer.micro_batch"
    )


def _shown(value: Value) -> str:
    return "null" if value is None else f"{value:g}"
