"""What the stages of a job share: objects built from the configuration, checked before work."""

from __future__ import annotations

import logging
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf

from tinyfusion.backbones.contract import Backbone
from tinyfusion.checkpoints import load, resolve
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.files import sha256_of
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.features import extractor_class
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.seeding import StepNoise
from tinyfusion.settings.compose import build
from tinyfusion.settings.schema import TrainerSettings, TrainingSettings
from tinyfusion.stages.fit import fit
from tinyfusion.tracking import Tracking
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.schedules import LearningRate

log = logging.getLogger(__name__)


class Setup:
    """Objects of one job, built once.

    Args:
        cfg: checked configuration.
        folder: the run's folder.

    Raises:
        InputError: whatever the configuration asks for can't be built.
    """

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        self.seed: int = cfg.seed
        self.trainer: TrainerSettings = build(cfg.trainer)
        self.process: GaussianDiffusion = build(cfg.process)
        self.source: ImageSource = build(cfg.data)
        if self.trainer.threads:
            torch.set_num_threads(self.trainer.threads)
        # Nothing that matters draws from the global generators; this is for third-party code.
        torch.manual_seed(self.seed)

    @cached_property
    def device(self) -> torch.device:
        """Where scoring and sampling run: the first device that training uses."""
        wants_gpu = self.trainer.accelerator in ("gpu", "cuda", "auto")
        return torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")

    @property
    def bars(self) -> bool:
        """Whether to draw moving bars: asked for, and someone is looking."""
        return self.trainer.progress and sys.stdout.isatty()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as plain data."""
        return OmegaConf.to_container(self.cfg, resolve=True)

    @cached_property
    def tracking(self) -> Tracking:
        """The job's tracker, started."""
        tracking: Tracking = build(self.cfg.logger)
        tracking.start(self.folder, self.cfg.name or self.folder.name, self.config)
        return tracking

    def load(self, path: str | None, key: str = "checkpoint") -> Backbone:
        """Load a checkpoint and hold it against the data.

        Raises:
            InputError: no path, an unusable file, or a model for other images than the data's.
        """
        if not path:
            raise InputError(f"{key}= must be given: a checkpoint file or a model folder")
        backbone = self.cfg.backbone
        arguments = None
        if backbone is not None and key == "checkpoint":
            # What is configured is checked against the file; its start values don't matter.
            arguments = build(backbone).config()
        net = load(path, backbone=arguments, num_heads=self.cfg.num_heads)
        self.check_data(net, path)
        return net

    def check_data(self, net: Backbone, name: str) -> None:
        """Refuse a model and data that don't fit each other.

        Raises:
            InputError: naming the first difference.
        """
        model = net.config()
        wanted = {
            "in_channels": self.source.channels,
            "input_size": self.source.size,
            "num_classes": self.source.num_classes,
        }
        for key, value in wanted.items():
            if key in model and model[key] != value:
                raise InputError(
                    f"{name} has {key}={model[key]} but the data has {value}; choose other data "
                    "(data=...) or another checkpoint"
                )

    def source_hash(self, path: str) -> str | None:
        """SHA-256 of a checkpoint's weights file."""
        found = Path(resolve(path))
        weights = found / "model.safetensors" if found.is_dir() else found
        return sha256_of(weights) if weights.is_file() else None

    @cached_property
    def evaluation(self) -> Evaluation:
        """The sampling and scoring protocol, held against the data before anything is trained.

        Raises:
            InputError: an unknown extractor, images that it does not take, or no held-out images.
        """
        evaluation: Evaluation = build(self.cfg.evaluation)
        source = self.source
        wanted = getattr(extractor_class(evaluation.extractor), "input_shape", None)
        found = (source.channels, source.size, source.size)
        if wanted is not None and tuple(wanted) != found:
            raise InputError(
                f"evaluation.extractor={evaluation.extractor} scores images of shape "
                f"{tuple(wanted)} but the data's are {found}; choose another extractor, such as "
                "inception-v3-compat"
            )
        if self.cfg.data.get("held_out") == 0:
            raise InputError(
                "data.held_out=0 leaves no image to compute the held-out loss on; "
                "give data.held_out=N"
            )
        return evaluation

    def settings(self, stage: str) -> TrainingSettings:
        """Training settings of a stage.

        Raises:
            InputError: there are none, or the global batch can't be split evenly.
        """
        settings: TrainingSettings = build(self.cfg.training).of(stage)
        parts = settings.accumulate * self.trainer.devices
        if settings.batch_size % parts:
            raise InputError(
                f"training.{stage}.batch_size={settings.batch_size} can't be split evenly into "
                f"{self.trainer.devices} device(s) x {settings.accumulate} micro-batch(es); "
                f"choose a multiple of {parts}"
            )
        return settings

    def shared(self, stage: str, net: Backbone) -> dict[str, Any]:
        """Keyword arguments of `DenoiserTraining` for a stage."""
        settings = self.settings(stage)
        drop = settings.label_drop
        if drop is None:
            drop = float(net.config().get("class_dropout_prob", 0.0))
        end = settings.learning_rate_end
        optimizer = build(self.cfg.optimizer)
        return {
            "process": self.process,
            "noise": StepNoise(self.seed, stage),
            "total_steps": settings.steps,
            "optimizer": lambda groups: optimizer(groups, lr=settings.learning_rate),
            "learning_rate": LearningRate(
                settings.learning_rate,
                settings.learning_rate if end is None else end,
                settings.warm_up,
            ),
            "clip_norm": settings.clip_norm,
            "label_drop": drop,
        }

    def callbacks(self) -> list[Callback]:
        """Fresh callbacks for one training stage."""
        return [build(node) for node in (self.cfg.callbacks or {}).values() if node is not None]

    def fit(self, module: DenoiserTraining, stage: str, folder: Path) -> None:
        """Train one stage in ``folder``, resuming it if it was interrupted."""
        fit(
            module,
            self.source,
            self.settings(stage),
            self.trainer,
            folder,
            stage,
            self.seed,
            self.tracking.logger(folder.name),
            self.callbacks(),
        )
        for figure in sorted(folder.glob("*.png")):
            self.tracking.image(f"{folder.name}/{figure.stem}", figure)
