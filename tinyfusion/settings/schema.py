"""Typed settings: what each command's configuration may hold.

Group nodes (``backbone``, ``pruner``, ...) are checked against the signature of their
``_target_`` instead (see `tinyfusion.settings.compose`), so that a user's own class needs no
entry here. Nothing in this file imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinyfusion.errors import InputError


@dataclass(frozen=True)
class TrainingSettings:
    """One training stage.

    Attributes:
        steps: optimiser steps.
        batch_size: images per optimiser step over all devices (the *global* batch).
        accumulate: micro-batches per optimiser step and device.
        learning_rate: peak rate.
        learning_rate_end: rate at the last step (cosine); ``None`` keeps it constant.
        warm_up: steps of linear warm-up.
        clip_norm: largest global gradient norm.
        label_drop: probability of the null class; ``None`` takes the backbone's
            ``class_dropout_prob``.
        ema_decay: decay per step of the averaged weights (warmed up; unused by mask learning,
            whose gates have their own).
        held_out_every: steps between two held-out scores (pre-training).

    Raises:
        InputError: a value out of range.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    learning_rate: float = 1e-4
    learning_rate_end: float | None = None
    warm_up: int = 0
    clip_norm: float = 1.0
    label_drop: float | None = None
    ema_decay: float = 0.9999
    held_out_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "held_out_every"):
            if getattr(self, name) < 1:
                raise InputError(f"training: {name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise InputError(f"training: {name}={getattr(self, name)} must be positive")
        if self.warm_up < 0:
            raise InputError(f"training: warm_up={self.warm_up} must be at least 0")
        if self.learning_rate_end is not None and self.learning_rate_end < 0:
            raise InputError(
                f"training: learning_rate_end={self.learning_rate_end} must not be negative"
            )
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"training: ema_decay={self.ema_decay} must be in [0, 1)")
        if self.label_drop is not None and not 0 <= self.label_drop < 1:
            raise InputError(f"training: label_drop={self.label_drop} must be in [0, 1)")


@dataclass(frozen=True)
class TrainerSettings:
    """Where and how training runs.

    Attributes:
        accelerator: ``cpu``, ``gpu`` or ``auto``.
        devices: number of devices.
        precision: Lightning's precision name, such as ``32-true`` or ``bf16-mixed``.
        strategy: Lightning's strategy name.
        num_workers: data-loading processes per device.
        threads: CPU threads of torch; ``None`` leaves torch's choice.
        resume_every: optimiser steps between two resume checkpoints.
        log_every: optimiser steps between two log entries.
        progress: show progress bars.
    """

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    strategy: str = "auto"
    num_workers: int = 0
    threads: int | None = None
    resume_every: int = 100
    log_every: int = 10
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("devices", "resume_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"trainer.{name}={getattr(self, name)} must be at least 1")


@dataclass
class TeacherSettings:
    """The network that is distilled from, or compared with.

    Attributes:
        path: ``source`` for the unpruned model, a checkpoint, or ``None`` for none.
    """

    path: str | None = None


@dataclass
class Common:
    """Keys that every command has."""

    command: str = ""
    seed: int = 0
    name: str | None = None
    resume: str | None = None
    output_root: str = "outputs"
    checkpoint: str | None = None
    num_heads: int | None = None
    backbone: Any = None
    process: Any = None
    trainer: Any = None
    sampler: Any = None


@dataclass
class Training(Common):
    """Keys of the commands that train."""

    data: Any = None
    training: Any = None
    optimizer: Any = None
    logger: Any = None
    callbacks: Any = None


@dataclass
class Pretrain(Training):
    """`tinyfusion pretrain`."""

    evaluation: Any = None


@dataclass
class Prune(Training):
    """`tinyfusion prune`."""

    scheme: Any = None
    keep: int | None = None
    pruner: Any = None
    delta: Any = None


@dataclass
class Recover(Training):
    """`tinyfusion recover`."""

    decision: str | None = None
    recovery: Any = None
    teacher: TeacherSettings = field(default_factory=TeacherSettings)


@dataclass
class Sample(Common):
    """`tinyfusion sample`."""

    n: int = 100
    labels: list[int] | None = None
    guidance: Any = None
    batch_size: int = 256


@dataclass
class Evaluate(Common):
    """`tinyfusion evaluate`."""

    data: Any = None
    evaluation: Any = None
    teacher: TeacherSettings = field(default_factory=TeacherSettings)


@dataclass
class Run(Prune):
    """`tinyfusion run`: prune, recover, evaluate."""

    decision: str | None = None
    recovery: Any = None
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    evaluation: Any = None


COMMANDS: dict[str, type[Common]] = {
    "pretrain": Pretrain,
    "prune": Prune,
    "recover": Recover,
    "sample": Sample,
    "evaluate": Evaluate,
    "run": Run,
}

SUMMARIES: dict[str, str] = {
    "pretrain": "train a backbone from its random start",
    "prune": "choose the blocks to keep and cut the checkpoint",
    "recover": "train a pruned checkpoint back to quality",
    "sample": "draw images from a checkpoint",
    "evaluate": "score a checkpoint: FID, held-out loss, speed",
    "run": "prune -> recover -> evaluate in one job",
}


GROUPS: dict[str, str] = {
    "experiment": "a set of overrides, such as a published recipe",
    "backbone": "the network; null takes what the checkpoint says",
    "process": "noising, targets and loss",
    "data": "images",
    "pruner": "how the blocks that stay are chosen",
    "delta": "weight update that is learned together with the mask",
    "recovery": "what the pruned network is trained on",
    "teacher": "the network to distil from (teacher.path=CHECKPOINT)",
    "optimizer": "optimiser",
    "training": "length, batch and learning rate of every stage",
    "sampler": "how images are drawn",
    "evaluation": "samples and scores",
    "callbacks": "what is recorded and drawn during training",
    "logger": "where metrics and figures are logged",
    "trainer": "device, precision, progress and resume intervals",
}
"""What each configuration group decides, in the order of the help."""

OPTIONAL_GROUPS = ("backbone", "callbacks", "delta", "evaluation")
"""Groups that may be null."""

VALUES: dict[str, str] = {
    "checkpoint": "file, model folder, packaged model (digits) or hub id owner/name",
    "scheme": "N:M, or a list of [keep, size] groups",
    "keep": "number of blocks that stay; null: as many as the scheme keeps",
    "decision": "a decision.json to apply instead of choosing blocks",
    "n": "number of images",
    "labels": "classes to draw; null: all in turn",
    "batch_size": "images drawn at a time",
    "seed": "seed of every random draw",
    "num_heads": "attention heads, for a bare state dict of unusual width",
    "name": "name of the run in the logger",
    "output_root": "where run folders are made",
    "resume": "folder of an interrupted run or sweep; goes alone",
}
"""What each plain value means, in the order of the help."""


@dataclass(frozen=True)
class StageTraining:
    """Training settings of the stages; what `conf/training/*.yaml` builds."""

    pretrain: TrainingSettings | None = None
    mask_learning: TrainingSettings | None = None
    recovery: TrainingSettings | None = None

    def of(self, stage: str) -> TrainingSettings:
        """Settings of one stage.

        Raises:
            InputError: the configuration has none for it.
        """
        settings = getattr(self, stage, None)
        if settings is None:
            raise InputError(f"the chosen training config has no section for {stage!r}")
        return settings
