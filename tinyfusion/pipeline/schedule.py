"""What a phase is going to do, said before it does it: steps, images, batches, averages, recipe."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tinyfusion.pipeline.batching import Split
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.recipes import differences
from tinyfusion.training.settings import TrainerSettings, TrainingSettings

log = logging.getLogger(__name__)

MOST_OF_START = 0.05
"""An average that holds more of its start than this at the end has not left it."""


def announce(
    module: DenoiserTraining,
    settings: TrainingSettings,
    trainer: TrainerSettings,
    split: Split,
    phase: str,
    num_images: int,
    recipe: str | None,
) -> None:
    """Log `described`, and `warned` as warnings; arguments as theirs."""
    for line in described(module, settings, split, num_images):
        log.info("%s: %s", phase, line)
    for line in warned(module, settings, trainer, split, phase, recipe):
        log.warning("%s: warning: %s", phase, line)


def described(
    module: DenoiserTraining, settings: TrainingSettings, split: Split, num_images: int
) -> list[str]:
    """Steps, images, how the batch is shared out, and what the averages keep of their start.

    Args:
        module: what is trained.
        settings: length and batch.
        split: how the batch is shared out.
        num_images: training images of the data.
    """
    images = settings.steps * settings.batch_size
    lines = [
        f"{settings.steps:,} steps x global batch {settings.batch_size} = {images:,} images "
        f"({images / num_images:.1f} epochs of {num_images:,})",
        f"global batch {settings.batch_size} = {split}",
    ]
    for name, (ema, _) in module.averages.items():
        held = ema.start_share(settings.steps)
        plain = ema.decay**settings.steps
        warm = f", warmed up; without it {_percent(plain)}" if ema.warm_up else ""
        lines.append(
            f"at the end the average of the {name} holds {_percent(held)} of its start "
            f"(decay {ema.decay:g} x {settings.steps:,} steps{warm})"
        )
    return lines + module.notes()


def warned(
    module: DenoiserTraining,
    settings: TrainingSettings,
    trainer: TrainerSettings,
    split: Split,
    phase: str,
    recipe: str | None,
) -> Sequence[str]:
    """What the user should know before waiting for the result.

    Args:
        module: what is trained.
        settings: length and batch.
        trainer: asked for micro-batches of at most a size.
        split: how the batch is shared out.
        phase: name of the phase.
        recipe: published recipe that the settings are meant to follow, if any.
    """
    lines = []
    if recipe is not None:
        rates = {
            "learning_rate": settings.learning_rate,
            "learning_rate_end": (
                settings.learning_rate
                if settings.learning_rate_end is None
                else settings.learning_rate_end
            ),
            "warm_up": settings.warm_up,
            "clip_norm": settings.clip_norm,
            "label_drop": module.label_drop,
            "ema_decay": settings.ema_decay,
            "ema_warm_up": settings.ema_warm_up,
            **_weight_decay(module),
        }
        differing = differences(recipe, phase, settings.steps, settings.batch_size, rates)
        if differing:
            lines.append(f"differs from the recipe {recipe!r}: {'; '.join(differing)}")
    for name, (ema, _) in module.averages.items():
        held = ema.start_share(settings.steps)
        if held > MOST_OF_START:
            lines.append(
                f"the average of the {name} will still hold {_percent(held)} of its start: too few "
                f"steps ({settings.steps:,}) for a decay of {ema.decay:g}; train longer or lower "
                "the decay"
            )
    if trainer.micro_batch is not None and 2 * split.images < min(
        trainer.micro_batch, split.images * split.micro_batches
    ):
        lines.append(
            f"micro-batches hold only {split.images} image(s), as a device's share of "
            f"{split.images * split.micro_batches} has no larger divisor up to "
            f"trainer.micro_batch={trainer.micro_batch}"
        )
    return lines


def _weight_decay(module: DenoiserTraining) -> dict[str, float]:
    """The optimiser's own setting, which no phase changes; empty if it has none."""
    defaults = module.configure_optimizers()["optimizer"].defaults
    return {"weight_decay": defaults["weight_decay"]} if "weight_decay" in defaults else {}


def _percent(share: float) -> str:
    if share < 1e-6:
        return "less than 0.0001 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
