"""The commands: what each one's configuration may hold, and what its help says.

Group nodes (``backbone``, ``pruner``, ...) are checked against the signature of their
``_target_`` instead (see `tinyfusion.settings.compose`), so that a user's own class needs no
entry here. Nothing in this file imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinyfusion.settings.schema import Iterative, TeacherSettings


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
