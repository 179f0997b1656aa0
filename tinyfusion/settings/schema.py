"""Typed settings: what each command's configuration may hold.

Group nodes (``backbone``, ``pruner``, ...) are checked against the signature of their
``_target_`` instead (see `tinyfusion.settings.compose`), so that a user's own class needs no
entry here. Nothing in this file imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinyfusion.errors import InputError
from tinyfusion.training.recipes import RECIPES


@dataclass(frozen=True)
class TrainingSettings:
    """One training stage.

    Attributes:
        steps: optimiser steps.
        batch_size: images per optimiser step over all devices (the *global* batch).
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
    learning_rate: float = 1e-4
    learning_rate_end: float | None = None
    warm_up: int = 0
    clip_norm: float = 1.0
    label_drop: float | None = None
    ema_decay: float = 0.9999
    held_out_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "held_out_every"):
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


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Lightning's names of what training can compute in.

Not those of weights in half precision, in which steps at the rates used here round to nothing.
"""


@dataclass(frozen=True)
class TrainerSettings:
    """Where and how training runs.

    Attributes:
        accelerator: ``cpu``, ``gpu`` or ``auto``.
        devices: number of devices per node; -1 takes all.
        num_nodes: number of machines.
        precision: one of `PRECISIONS`: weights are always float32; ``16-mixed``, with a gradient
            scaler, is how the reference code trains.
        strategy: Lightning's strategy name.
        micro_batch: most images that a device takes at once; ``None``: its whole share of the
            global batch. How many micro-batches make a step follows from this.
        checkpoint_blocks: recompute each block's activations in the backward pass instead of
            keeping them.
        compile: compile the blocks of student and teacher.
        compile_backend: what compiles them.
        num_workers: data-loading processes per device; at most one per processor is started.
        threads: CPU threads of torch; ``None`` leaves torch's choice.
        resume_every: optimiser steps between two resume checkpoints.
        log_every: optimiser steps between two log entries.
        progress: show progress bars.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
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

    def __post_init__(self) -> None:
        for name in ("num_nodes", "resume_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"trainer.{name}={getattr(self, name)} must be at least 1")
        if self.devices < 1 and self.devices != -1:
            raise InputError(f"trainer.devices={self.devices} must be at least 1, or -1 for all")
        if self.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision={self.precision} is not known; valid: {', '.join(PRECISIONS)}"
            )
        if self.micro_batch is not None and self.micro_batch < 1:
            raise InputError(
                f"trainer.micro_batch={self.micro_batch} must be at least 1, or null for all"
            )


@dataclass
class TeacherSettings:
    """The network that is distilled from, or compared with.

    Attributes:
        path: ``source`` for the unpruned model, a checkpoint, or ``None`` for none.
    """

    path: str | None = None


@dataclass
class Iterative:
    """Pruning in several rounds, each of which goes on from the recovered model of the one before.

    Attributes:
        depths: blocks that each round leaves, the last one's included.
        weights: what the last round cuts: ``previous``, the model of the round before, or
            ``source``, the first model.
        teacher: what it distils from, likewise.
        previous: a checkpoint to take for the model of the round before the last, which is then
            not made.
    """

    depths: list[int] = field(default_factory=list)
    weights: str = "previous"
    teacher: str = "previous"
    previous: str | None = None


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
    autoencoder: Any = None
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
    dry_run: bool = False
    dry_run_probe: bool | None = None


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
    selector: Any = None
    delta: Any = None


@dataclass
class Recover(Training):
    """`tinyfusion recover`."""

    decision: str | None = None
    start: str = "kept"
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
    start: str = "kept"
    iterative: Iterative | None = None
    recovery: Any = None
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    evaluation: Any = None


@dataclass
class Encode:
    """`tinyfusion encode`."""

    command: str = ""
    resume: str | None = None
    output_root: str = "outputs"
    data: Any = None
    autoencoder: Any = None
    trainer: Any = None
    store: str | None = None
    moments: bool = True
    mirrors: bool = True
    skip_undecodable: bool = False
    shard_size: int = 1000
    workers: int | None = None
    part: int = 0
    parts: int = 1


COMMANDS: dict[str, type[Any]] = {
    "encode": Encode,
    "pretrain": Pretrain,
    "prune": Prune,
    "recover": Recover,
    "sample": Sample,
    "evaluate": Evaluate,
    "run": Run,
}

SUMMARIES: dict[str, str] = {
    "encode": "turn an image folder into latents, once, before training on them",
    "pretrain": "train a backbone from its random start",
    "prune": "choose the blocks to keep and cut the checkpoint",
    "recover": "train a pruned checkpoint back to quality",
    "sample": "draw images from a checkpoint",
    "evaluate": "score a checkpoint: FID, held-out loss, speed",
    "run": "prune -> recover -> evaluate in one job",
}


GROUPS: dict[str, str] = {
    "experiment": "a set of overrides, such as a published recipe",
    "backbone": "the network, with its process and sampler; null takes what the checkpoint says",
    "process": "noising, targets and loss",
    "autoencoder": "between pictures and latents; none for a model of pixels",
    "data": "images or latents",
    "pruner": "how the blocks that stay are chosen",
    "selector": "how a pruner that scores blocks goes from scores to blocks",
    "delta": "weight update that is learned together with the mask",
    "recovery": "what the pruned network is trained on",
    "stages": "which weights recovery trains at first; none trains all from the start",
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

OPTIONAL_GROUPS = ("autoencoder", "backbone", "callbacks", "delta", "evaluation")
"""Groups that may be null."""

PART_OF = {"stages": "recovery"}
"""Groups whose choice is a key of another group's: ``recovery.stages``."""

VALUES: dict[str, str] = {
    "checkpoint": "file, folder, hub id, or packaged: digits, sit_digits, mar_digits",
    "scheme": "N:M, or a list of [keep, size] groups",
    "keep": "number of blocks that stay; null: as many as the scheme keeps",
    "decision": "a decision.json or widths.json to apply instead of choosing",
    "start": "weights that recovery starts from: kept, or fresh (from scratch)",
    "iterative": "prune in several rounds; see experiment=iterative",
    "n": "number of images",
    "labels": "classes to draw; null: all in turn",
    "batch_size": "images drawn at a time",
    "store": "folder that the latents are written to; gone on with if unfinished",
    "moments": "store mean and log-variance of the posterior; false: the mean",
    "mirrors": "encode the mirrored images, too",
    "skip_undecodable": "leave out images that can't be decoded, and list them",
    "shard_size": "images per file",
    "workers": "processes on this machine, GPUs in turn; null: trainer.devices",
    "part": "which of the parts this is: 0 to parts - 1",
    "parts": "into how many parts machines or jobs share the work",
    "seed": "seed of every random draw",
    "num_heads": "attention heads, for a bare state dict of unusual width",
    "name": "name of the run in the logger",
    "output_root": "where run folders are made",
    "dry_run": "only say what the run would take: parameters, memory, steps, files, time",
    "dry_run_probe": "time a few real steps for that; null: where there is a GPU",
    "resume": "folder of an interrupted run or sweep; goes alone",
}
"""What each plain value means, in the order of the help."""


@dataclass(frozen=True)
class StageTraining:
    """Training settings of the stages; what `conf/training/*.yaml` builds.

    Attributes:
        pretrain: of pre-training.
        mask_learning: of learning which blocks stay.
        recovery: of training the pruned network.
        recipe: name of the published recipe that the values are meant to follow, if any; a run
            says where it differs.

    Raises:
        InputError: an unknown recipe.
    """

    pretrain: TrainingSettings | None = None
    mask_learning: TrainingSettings | None = None
    recovery: TrainingSettings | None = None
    recipe: str | None = None

    def __post_init__(self) -> None:
        if self.recipe is not None and self.recipe not in RECIPES:
            raise InputError(
                f"training.recipe={self.recipe!r} is not known; valid: {', '.join(RECIPES)}, or "
                "null for none"
            )

    def of(self, stage: str) -> TrainingSettings:
        """Settings of one stage.

        Raises:
            InputError: the configuration has none for it.
        """
        settings = getattr(self, stage, None)
        if settings is None:
            raise InputError(f"the chosen training config has no section for {stage!r}")
        return settings
