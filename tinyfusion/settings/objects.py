"""What a command works with: objects built once from its checked configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.by_name import as_backbone_class
from tinyfusion.backbones.presets import family_of
from tinyfusion.checkpoints import weights_sha256
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError, one_line
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.pipeline.budgets import Wanted
from tinyfusion.pipeline.machine import check_machine, count_devices, scoring_device
from tinyfusion.pipeline.recovery_checks import PhasedRecovery
from tinyfusion.pipeline.rounds import Rounds
from tinyfusion.pipeline.runner import MakeOptimizer
from tinyfusion.processes.contract import Process
from tinyfusion.pruners.contract import Pruner
from tinyfusion.recovery.objective import Objective
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.generate import AUTOCAST
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.settings.check import check_targets
from tinyfusion.settings.compose import build, locate, parameters_of, plain
from tinyfusion.tracking.trackers import Trackers
from tinyfusion.training.settings import PhaseSettings, TrainerSettings

if TYPE_CHECKING:
    from lightning.pytorch import Callback

SOURCE = "source"
"""``teacher.path`` of the unpruned model."""


@dataclass(frozen=True)
class Objects:
    """Objects and plain values of one command; what a command does not have is ``None``.

    Attributes:
        command: name of the command.
        name: name of the run in the logger.
        seed: seed of every random draw.
        config: the resolved configuration as plain data, for records only.
        output_root: where run folders and caches are.
        checkpoint: the model to begin with.
        num_heads: attention heads, for a bare state dict of unusual width.
        weights: which of the checkpoint's weights; ``None`` for the averaged ones.
        expected: family and arguments that ``backbone=`` says, its class imported.
        teacher_path: the network to distil from or compare with; `SOURCE` for the unpruned one.
        teacher_weights: as ``weights``, of that file.
        decision_path: a decision to apply instead of choosing.
        trainer: device, precision, strategy, intervals.
        devices: devices over all nodes.
        device: where this process scores and samples.
        process: the process.
        make_source: builds the data.
        held_out: held-out images as configured; ``None`` if the data itself says how many.
        autoencoder: decoder of latents; ``None`` for a model of pixels.
        sampler: how single samples are drawn.
        guidance: guidance of these samples.
        evaluation: sampling and scoring protocol; ``None`` for no scores.
        training: settings of phases.
        optimizer: makes an optimiser.
        pruner: how units are chosen.
        wanted: how much is to stay.
        recovery: what recovery minimises.
        start: weights that recovery starts from.
        rounds: pruning in several rounds.
        make_tracking: builds the loggers of a run in a folder.
        make_callbacks: builds fresh callbacks by name.
    """

    command: str
    name: str | None
    seed: int
    config: dict[str, Any]
    output_root: Path
    checkpoint: str | None
    num_heads: int | None
    weights: str | None
    expected: dict[str, Any] | None
    teacher_path: str | None
    teacher_weights: str | None
    decision_path: str | None
    trainer: TrainerSettings
    devices: int
    device: torch.device
    process: Process
    make_source: Callable[[], ImageSource]
    held_out: int | None
    autoencoder: Autoencoder | None
    sampler: Sampler | None
    guidance: Guidance
    evaluation: Evaluation | None
    training: PhaseSettings | None
    optimizer: MakeOptimizer | None
    pruner: Pruner | None
    wanted: Wanted
    recovery: Objective | PhasedRecovery | None
    start: str
    rounds: Rounds | None
    make_tracking: Callable[[Path], Trackers]
    make_callbacks: Callable[[], dict[str, Callback]]

    @cached_property
    def source(self) -> ImageSource:
        """The images or latents, built at first use.

        Raises:
            InputError: what the data refuses.
        """
        return self.make_source()

    @cached_property
    def source_sha256(self) -> str:
        """SHA-256 of the checkpoint's weights; read once, as it may be gigabytes.

        Raises:
            InputError: there is no such file.
        """
        assert self.checkpoint is not None  # it has been loaded
        return weights_sha256(self.checkpoint)

    @cached_property
    def held_out_loss(self) -> HeldOutLoss | None:
        """Loss on the fixed held-out batch; ``None`` if no image is held out."""
        images, conditioning = self.source.held_out()
        return HeldOutLoss(self.process, images, conditioning) if len(images) else None

    def check_machine(self) -> None:
        """Refuse devices, settings of them or an optimiser that this machine can't give.

        Imports Lightning, and therefore comes after all that is checked without it.

        Raises:
            InputError: see `tinyfusion.pipeline.machine.check_machine`.
        """
        check_machine(self.trainer, self.optimizer, self.device)

    @property
    def dtype(self) -> torch.dtype | None:
        """What samples are computed in, by autocast; ``None`` for float32."""
        return AUTOCAST.get(self.trainer.precision)

    @property
    def bars(self) -> bool:
        """Whether to draw moving bars: asked for, and written to a terminal."""
        return self.trainer.progress and sys.stdout.isatty()


def objects_of(cfg: DictConfig) -> Objects:
    """Build what a configuration describes; whether its devices are there is checked later.

    Args:
        cfg: checked configuration of any command that loads or makes a model.

    Raises:
        InputError: whatever the constructors refuse.
    """
    trainer: TrainerSettings = build(cfg.trainer)
    guidance = _built(cfg, "guidance")
    return Objects(
        command=cfg.command,
        name=cfg.name,
        seed=cfg.seed,
        config=plain(cfg),
        output_root=Path(cfg.output_root),
        checkpoint=cfg.checkpoint,
        num_heads=cfg.num_heads,
        weights=cfg.get("weights"),
        expected=expected_backbone(cfg.backbone),
        teacher_path=cfg.teacher.path if "teacher" in cfg else None,
        teacher_weights=cfg.teacher.get("weights") if "teacher" in cfg else None,
        decision_path=cfg.get("decision"),
        trainer=trainer,
        devices=count_devices(trainer),
        device=scoring_device(trainer),
        process=build(cfg.process),
        make_source=lambda: build(cfg.data),
        held_out=cfg.data.get("held_out") if cfg.get("data") is not None else None,
        autoencoder=_built(cfg, "autoencoder"),
        sampler=_built(cfg, "sampler"),
        guidance=NO_GUIDANCE if guidance is None else guidance,
        evaluation=_built(cfg, "evaluation"),
        training=_built(cfg, "training"),
        optimizer=_built(cfg, "optimizer"),
        pruner=_with(_built(cfg, "pruner"), "pruner", ("choose",)),
        wanted=_wanted(cfg),
        recovery=_recovery(cfg),
        start=cfg.get("start", "kept"),
        rounds=_rounds(cfg),
        make_tracking=lambda folder: _trackers(cfg, folder),
        make_callbacks=lambda: _callbacks(cfg),
    )


def expected_backbone(node: DictConfig | None) -> dict[str, Any] | None:
    """Family and arguments of the configured backbone, whose class is imported.

    Args:
        node: the group's node; ``None`` takes what the checkpoint says.

    Raises:
        InputError: its class is no backbone, or one that could not be found again by name.
    """
    if node is None:
        return None
    arguments = plain(node)
    target = arguments.pop("_target_")
    kind = as_backbone_class(locate(target, "backbone"), f"backbone._target_={target!r}")
    return {"backbone": family_of(kind), **arguments}


def _built(cfg: DictConfig, key: str) -> Any:
    return None if cfg.get(key) is None else build(cfg[key])


def _with(built: Any, key: str, names: tuple[str, ...]) -> Any:
    """What was built, which is to have these attributes.

    Raises:
        InputError: it lacks one of them.
    """
    missing = [] if built is None else [name for name in names if not hasattr(built, name)]
    if missing:
        raise InputError(
            f"{key}: a {type(built).__name__} has no {missing[0]!r}; a class for {key}= needs "
            f"{', '.join(names)}"
        )
    return built


def _recovery(cfg: DictConfig) -> Objective | PhasedRecovery | None:
    built = _built(cfg, "recovery")
    if isinstance(built, Objective):
        return built
    return _with(built, "recovery", ("uses_teacher", "check", "phases"))


def _callbacks(cfg: DictConfig) -> dict[str, Callback]:
    """Fresh callbacks by name; only now are their settings checked, as that imports Lightning.

    Raises:
        InputError: see `check_targets`, or what their constructors refuse.
    """
    check_targets(cfg, "callbacks")
    nodes = cfg.get("callbacks") or {}
    return {str(name): build(node) for name, node in nodes.items() if node is not None}


def _trackers(cfg: DictConfig, folder: Path) -> Trackers:
    """The loggers, which write into the run's folder where nothing else is said.

    Raises:
        InputError: see `check_targets`, or what their constructors refuse, in their own words.
    """
    check_targets(cfg, "logger")
    built = {}
    for key, node in (cfg.get("logger") or {}).items():
        name = str(key)
        if node is None:
            continue
        target = locate(node["_target_"], f"logger.{name}")
        wanted = parameters_of(target).get("save_dir")
        unset = wanted is not None and wanted.default in (wanted.empty, None, ".")
        if unset and "save_dir" not in node:
            node = OmegaConf.merge(node, {"save_dir": str(folder)})
        try:
            built[name] = build(node)
        # A library's refusals are of all kinds, such as that a package is not there.
        except Exception as error:
            raise InputError(f"logger.{name}: {one_line(error.__cause__ or error)}") from error
    return Trackers(built)


def _wanted(cfg: DictConfig) -> Wanted:
    if "budget" not in cfg:
        return Wanted()
    budget: Any = OmegaConf.to_container(cfg.budget)
    return Wanted.of(cfg.scheme, cfg.keep, cfg.units, budget)


def _rounds(cfg: DictConfig) -> Rounds | None:
    if cfg.get("iterative") is None:
        return None
    node = cfg.iterative
    return Rounds(list(node.depths), node.weights, node.teacher, node.previous)
