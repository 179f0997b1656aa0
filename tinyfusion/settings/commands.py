"""The commands: what each one's configuration may hold, and what its help says.

Group nodes (``backbone``, ``pruner``, ...) are checked against the signature of their
``_target_`` instead (see `tinyfusion.settings.compose`), so that a user's own class needs no
entry here. Nothing in this file imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinyfusion.settings.schema import BudgetSettings, Iterative, TeacherSettings


@dataclass
class Loading:
    """Keys of every command that loads a model."""

    command: str = ""
    seed: int = 0
    name: str | None = None
    resume: str | None = None
    output_root: str = "outputs"
    checkpoint: str | None = None
    num_heads: int | None = None
    weights: str | None = None
    backbone: Any = None
    process: Any = None
    trainer: Any = None


@dataclass
class Common(Loading):
    """Keys of every command that trains or samples a model."""

    autoencoder: Any = None
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
    optimized_metric: str | None = None


@dataclass
class Pretrain(Training):
    """`tinyfusion pretrain`."""

    evaluation: Any = None


@dataclass
class Prune(Training):
    """`tinyfusion prune`."""

    scheme: Any = None
    keep: int | None = None
    units: str = "blocks"
    budget: BudgetSettings = field(default_factory=BudgetSettings)
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
    class_balance: str = "random"
    guidance: Any = None
    batch_size: int = 256
    format: str = "png"
    shard_size: int = 1000
    pack: bool = True


@dataclass
class Evaluate(Common):
    """`tinyfusion evaluate`."""

    images: str | None = None
    keep_samples: bool = False
    data: Any = None
    evaluation: Any = None
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    logger: Any = None
    optimized_metric: str | None = None


@dataclass
class Activations(Loading):
    """`tinyfusion activations`."""

    data: Any = None
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    logger: Any = None
    samples: int = 256
    batch_size: int = 64
    num_sigmas: list[float] = field(default_factory=lambda: [0.1, 2.0, 4.0])


@dataclass
class Benchmark(Loading):
    """`tinyfusion benchmark`."""

    sampler: Any = None
    guidance: Any = None
    models: Any = None
    depths: list[int] | None = None
    widths: list[float] | None = None
    hidden_size: int | None = None
    input_size: int | None = None
    batch_size: int = 32
    rounds: int = 3


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
    "activations": Activations,
    "benchmark": Benchmark,
    "run": Run,
}

SUMMARIES: dict[str, str] = {
    "encode": "turn an image folder into latents, once, before training on them",
    "pretrain": "train a backbone from its random start",
    "prune": "choose the blocks to keep and cut the checkpoint",
    "recover": "train a pruned checkpoint back to quality",
    "sample": "draw images from a checkpoint",
    "evaluate": "score a checkpoint, or images: FID, sFID, IS, precision, recall",
    "activations": "find massive hidden states, and what masked distillation leaves out",
    "benchmark": "measure how fast models sample: it/s, latency, MACs, memory",
    "run": "prune -> recover -> evaluate in one job",
}


GROUPS: dict[str, str] = {
    "experiment": "a set of overrides, such as a published recipe",
    "backbone": "the network, with its process and sampler; null takes what the checkpoint says",
    "process": "noising, targets and loss",
    "autoencoder": "between pictures and latents; none for a model of pixels",
    "data": "images or latents",
    "pruner": "how the blocks (or other units) that stay are chosen",
    "selector": "how a pruner that scores units goes from scores to those that stay",
    "delta": "weight update that is learned together with the mask",
    "recovery": "what the pruned network is trained on",
    "stages": "which weights recovery trains at first, or which blocks it removes itself; or none",
    "updates": "how large the updates of each block are in recovery; none trains all alike",
    "teacher": "the network to distil from (teacher.path=CHECKPOINT)",
    "optimizer": "optimiser",
    "training": "length, batch and learning rate of every phase",
    "sampler": "how images are drawn",
    "evaluation": "samples and scores",
    "callbacks": "what is recorded and drawn during training",
    "logger": "where metrics and figures are logged, besides CSV files; several: logger=[A,B]",
    "trainer": "device, precision, progress and resume intervals",
    "debug": "how to look for faults; several: debug=[default,anomaly]",
    "hparams_search": "what an optimiser searches, with -m; needs tinyfusion[optuna]",
}
"""What each configuration group decides, in the order of the help."""

OPTIONAL_GROUPS = ("autoencoder", "backbone", "callbacks", "delta", "evaluation", "logger")
"""Groups that may be null."""

WHOLE = ("experiment", "debug", "hparams_search")
"""Groups whose files change the whole configuration, and which are no key of it."""

PARTS = ("guidance",)
"""Objects that a command's own configuration describes, without a group to choose from."""

PART_OF = {"stages": "recovery", "updates": "recovery"}
"""Groups whose choice is a key of another group's: ``recovery.stages``."""

NESTED = ("budget",)
"""Values that have keys of their own."""

VALUES: dict[str, str] = {
    "checkpoint": "file, folder, hub id, or packaged: digits, sit_digits, mar_digits",
    "weights": "which of a file's weights, such as ema or model; null: the averaged ones",
    "models": "list of presets (random weights) and checkpoints; null: checkpoint",
    "depths": "list of numbers of blocks that the first model is cut to",
    "widths": "list of shares of parameters that the first model loses by cut widths",
    "hidden_size": "width of presets to time, to narrow them; num_heads likewise",
    "input_size": "side of the latents of presets to time",
    "rounds": "timed rounds, in each of which every model has its turn",
    "scheme": "N:M, a list of [keep, size] groups, or even; null: no groups",
    "keep": "number of units that stay; null: what the scheme keeps, or half",
    "units": "what is chosen among: blocks, or branches (attention, MLP) of blocks",
    "budget": "parameters, macs, latency (with batch_size, table); protected, minimum",
    "decision": "a decision.json to apply instead of choosing",
    "start": "weights that recovery starts from: kept, averaged (over removed), fresh",
    "iterative": "prune in several rounds; see experiment=iterative",
    "n": "number of images",
    "labels": "classes to draw, in turn; null: as class_balance says",
    "class_balance": "random (as published) or balanced: all classes equally often",
    "format": "png (one file per image) or npz (uint8 batches of about shard_size images)",
    "images": "images to score instead of a model's: an .npz batch or a folder",
    "keep_samples": "leave the model's samples in the run's folder, as 'tinyfusion sample' does",
    "pack": "also write samples.npz of all images, in the layout of ADM's evaluator",
    "samples": "noised training images that hidden states are collected on",
    "num_sigmas": "where massive begins, in standard deviations of a sample's states",
    "batch_size": "images at a time",
    "store": "folder that the latents are written to; resumed if unfinished",
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
    "optimized_metric": "figure that a run returns to an optimiser, such as recovered/fid",
    "resume": "folder of an interrupted run or sweep; goes alone",
}
"""What each plain value means, in the order of the help."""
