"""Settings of devices and of training phases. Nothing in this file imports torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinyfusion.errors import InputError
from tinyfusion.training.phase_settings import TrainingSettings
from tinyfusion.training.recipes import RECIPES

PROFILERS = ("simple", "advanced")
"""Lightning's profilers that a run may have: of actions, or of every Python function."""

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Lightning's names of the precisions that training accepts.

Weights in half precision are left out: at the rates used here their updates round to nothing.
"""


_RANGES = {
    **dict.fromkeys(("num_nodes", "resume_every", "log_every", "micro_batch"), (1, None)),
    "num_workers": (0, None),
    "threads": (1, 1024),
}
"""Least and largest values of settings; those that may be null have them if they are given."""


@dataclass(frozen=True)
class TrainerSettings:
    """Where and how training runs.

    Attributes:
        accelerator: ``cpu``, ``gpu`` or ``auto``.
        devices: number of devices per node; -1 takes all.
        num_nodes: number of machines.
        precision: one of `PRECISIONS`, of training and of sampling by commands: weights are
            always float32; ``16-mixed``, with a gradient scaler, is how the reference code trains.
        teacher_precision: likewise, of a teacher in recovery; ``None`` as everything else. What it
            changes is logged with the first step.
        strategy: Lightning's strategy name.
        micro_batch: most images in one forward on a device; ``None``: its whole share of the
            global batch. How many micro-batches make a step follows from this.
        checkpoint_blocks: recompute each block's activations in the backward pass instead of
            keeping them.
        compile: compile the blocks of student and teacher.
        compile_backend: what compiles them.
        num_workers: data-loading processes per device; at most one per processor is started.
        threads: CPU threads of torch; ``None`` chooses by the work of the network, see
            `tinyfusion.pipeline.threads`.
        resume_every: optimiser steps between two resume checkpoints.
        log_every: optimiser steps between two log entries.
        progress: show progress bars.
        detect_anomaly: stop at the first NaN of a backward pass and say which operation of the
            forward pass it is of (torch's anomaly detection); slow.
        profiler: one of `PROFILERS`, which times the steps of each phase and writes
            ``fit-profile.txt`` in its folder; ``None`` for none.

    Raises:
        InputError: a number out of range, an unknown precision, or an unknown profiler.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    teacher_precision: str | None = None
    strategy: str = "auto"
    micro_batch: int | None = None
    checkpoint_blocks: bool = False
    compile: bool = False
    compile_backend: str = "inductor"
    num_workers: int = 0
    threads: int | None = None
    resume_every: int = 100
    log_every: int = 10
    progress: bool = True
    detect_anomaly: bool = False
    profiler: str | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"trainer.{name}={value} must be at least {least}")
            if value is not None and most is not None and value > most:
                raise InputError(f"trainer.{name}={value} must be at most {most}")
        if not 1 <= self.devices <= 1024 and self.devices != -1:
            raise InputError(f"trainer.devices={self.devices} must be 1 to 1024, or -1 for all")
        if self.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision={self.precision} is not known; valid: {', '.join(PRECISIONS)}"
            )
        if self.profiler not in (None, *PROFILERS):
            raise InputError(
                f"trainer.profiler={self.profiler} is not known; valid: {', '.join(PROFILERS)}, or "
                "null for none"
            )
        if self.teacher_precision not in (None, *PRECISIONS):
            raise InputError(
                f"trainer.teacher_precision={self.teacher_precision} is not known; valid: "
                f"{', '.join(PRECISIONS)}, or null for trainer.precision"
            )


@dataclass(frozen=True)
class PhaseSettings:
    """Training settings of the phases; what `conf/training/*.yaml` builds.

    Attributes:
        pretrain: of pre-training.
        mask_learning: of learning which blocks stay.
        recovery: of training the pruned network.
        recipe: name of the published recipe that the values are meant to follow, if any; a run
            says where it differs.
        max_steps: most optimiser steps of any phase, to see whether all of a run works;
            ``None`` leaves the lengths as they are.

    Raises:
        InputError: an unknown recipe, or ``max_steps`` below 1.
    """

    pretrain: TrainingSettings | None = None
    mask_learning: TrainingSettings | None = None
    recovery: TrainingSettings | None = None
    recipe: str | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise InputError(f"training.max_steps={self.max_steps} must be at least 1")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise InputError(
                f"training.recipe={self.recipe!r} is not known; valid: {', '.join(RECIPES)}, or "
                "null for none"
            )

    def of(self, phase: str) -> TrainingSettings:
        """Settings of one phase.

        Raises:
            InputError: the configuration has none for it.
        """
        settings = getattr(self, phase, None)
        if settings is None:
            raise InputError(f"the chosen training config has no section for {phase!r}")
        return self.shortened(settings)

    def shortened(self, settings: TrainingSettings) -> TrainingSettings:
        """Settings of a phase with at most `max_steps` steps, and a warm-up within them."""
        if self.max_steps is None or settings.steps <= self.max_steps:
            return settings
        warm_up = min(settings.warm_up, self.max_steps - 1)
        return replace(settings, steps=self.max_steps, warm_up=warm_up)
