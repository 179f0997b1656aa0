"""What the stages of a job share: objects built from the configuration, checked before work."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.by_name import as_backbone_class
from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import FAMILIES, PRESETS, build_empty, family_of, preset_family
from tinyfusion.backbones.presets import build as build_backbone
from tinyfusion.backbones.rebuild import check_own
from tinyfusion.checkpoints import read_checkpoint, weights_sha256
from tinyfusion.checkpoints.construct import left_unsaid, to_backbone
from tinyfusion.commands.check_scores import check_extractor, check_files, check_held_out
from tinyfusion.commands.checks import (
    check_data,
    check_decoder,
    check_latents,
    check_machine,
    check_sampling,
)
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.metrics.speed import parameters
from tinyfusion.pipeline.batching import split_batch
from tinyfusion.pipeline.fit import fit
from tinyfusion.processes.contract import Process
from tinyfusion.pruners.contract import calibration_batch
from tinyfusion.ranks import is_first_rank, is_rank, local_rank
from tinyfusion.recovery.features import mean_squares
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.generate import AUTOCAST
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.seeding import StepNoise
from tinyfusion.settings.compose import build, locate
from tinyfusion.tracking import Tracking
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.schedules import LearningRate
from tinyfusion.training.settings import TrainerSettings, TrainingSettings

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
        self.process: Process = build(cfg.process)
        if self.trainer.threads:
            torch.set_num_threads(self.trainer.threads)
        # Nothing that matters draws from the global generators; this is for third-party code.
        torch.manual_seed(self.seed)
        self.world = self._count_devices()

    def _count_devices(self) -> int:
        """Devices of all nodes, which this machine's part must have."""
        return check_machine(self.trainer, self.cfg.get("optimizer"), self.device)

    @cached_property
    def source(self) -> ImageSource:
        """The images or latents.

        Raises:
            InputError: what the data refuses, or a process that does not fit it.
        """
        source: ImageSource = build(self.cfg.data)
        check_latents(source, self.process)
        return source

    @cached_property
    def autoencoder(self) -> Autoencoder | None:
        """Decoder of the model's latents; ``None`` for a model of pixels."""
        return None if self.cfg.autoencoder is None else build(self.cfg.autoencoder)

    @cached_property
    def device(self) -> torch.device:
        """Where scoring and sampling run: the first device that training uses, or the rank's."""
        wants_gpu = self.trainer.accelerator in ("gpu", "cuda", "auto")
        if not (wants_gpu and torch.cuda.is_available()):
            return torch.device("cpu")
        if is_rank():
            # A launcher may show each rank its own device alone.
            return torch.device("cuda", local_rank() % torch.cuda.device_count())
        return torch.device("cuda")

    @property
    def dtype(self) -> torch.dtype | None:
        """What samples are computed in, by autocast; ``None`` for float32."""
        return AUTOCAST.get(self.trainer.precision)

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
        # Further ranks train along but log nothing.
        tracking: Tracking = build(self.cfg.logger) if is_first_rank() else Tracking()
        tracking.start(self.folder, self.cfg.name or self.folder.name, self.config)
        return tracking

    def load(self, path: str | None, key: str = "checkpoint") -> Backbone:
        """Load a checkpoint and hold it against the data and all that is to be sampled.

        Raises:
            InputError: no path, an unusable file, a model for other images than the data's, or
                a sampler or guidance that does not fit the process or the model.
        """
        net = self.load_alone(path, key)
        check_data(net, self.source, path or key)
        if key == "checkpoint":
            self.check_plan(net)
        return net

    def load_alone(self, path: str | None, key: str = "checkpoint") -> Backbone:
        """Load a checkpoint; needs no data.

        Raises:
            InputError: no path, or a file that is unusable or not what ``backbone=`` says, or a
                class of the user's own that could not be saved after pruning.
        """
        if not path:
            raise InputError(f"{key}= must be given: a checkpoint file or a model folder")
        # What is configured is checked against the file. A class of the user's own is imported
        # by it, which files, teachers' among them, may then name.
        expected = self.backbone()
        checkpoint = read_checkpoint(path)
        if key != "checkpoint":
            expected = left_unsaid(checkpoint, expected)
        net = to_backbone(checkpoint, expected, self.cfg.num_heads)
        self.process.check(net, path)
        check_own(net)
        return net

    def teacher_path(self) -> str | None:
        """The checkpoint to compare with; ``None`` for none.

        Raises:
            InputError: ``teacher.path=source``, which only what prunes knows.
        """
        path = self.cfg.teacher.path
        if path == "source":
            raise InputError(
                "teacher.path=source: a checkpoint does not hold the model it was cut from; give "
                "teacher.path=PATH, or teacher=none"
            )
        return path

    def new_backbone(self) -> Backbone:
        """The configured backbone with its start values, drawn from the global generator."""
        if self.cfg.backbone is None:
            raise InputError(
                f"backbone= must be given to {self.cfg.command}, for example backbone=dit_digits"
            )
        arguments = self.backbone()
        family = arguments["backbone"]
        # A class of the user's own has sizes of its own.
        if set(arguments) == {"backbone"} and family in FAMILIES:
            raise InputError(
                f"backbone={family} says what a checkpoint is, not how large a new model is to be; "
                f"choose one of {', '.join(n for n in PRESETS if preset_family(n) == family)}"
            )
        if family in FAMILIES:
            # Ahead of start values, which take long for large models.
            with torch.random.fork_rng(devices=[]):
                net = build_empty(arguments)
            self.process.check(net, "backbone")
            check_data(net, self.source, "backbone")
        net = build_backbone(arguments)
        self.process.check(net, "backbone")
        check_own(net)
        return net

    def backbone(self) -> dict[str, Any] | None:
        """Family and arguments of the configured backbone, whose class is imported.

        Raises:
            InputError: its class is no backbone, or one that could not be found again by name.
        """
        if self.cfg.backbone is None:
            return None
        node = OmegaConf.to_container(self.cfg.backbone, resolve=True)
        target = node.pop("_target_")
        kind = as_backbone_class(locate(target, "backbone"), f"backbone._target_={target!r}")
        return {"backbone": family_of(kind), **node}

    @cached_property
    def source_hash(self) -> str:
        """SHA-256 of the checkpoint's weights; read once, as it may be gigabytes."""
        return weights_sha256(self.cfg.checkpoint)

    def check_plan(self, net: Backbone) -> None:
        """Hold everything that is to be sampled during and after training against a model.

        Raises:
            InputError: see `check_sampling` and `evaluation`.
        """
        self.check_sampling(net, "sampler", build(self.cfg.sampler))
        evaluation = self.evaluation if "evaluation" in self.cfg else None
        if evaluation is not None:
            self.check_sampling(net, "evaluation", evaluation.sampler, evaluation.guidance)
            check_decoder(net, self.process, evaluation.autoencoder, self.source)
        for name, callback in self._named_callbacks().items():
            key, drawn = f"callbacks.{name}", callback
            if isinstance(getattr(callback, "evaluation", None), Evaluation):
                key, drawn = f"{key}.evaluation", callback.evaluation
                self._check_protocol(drawn, key)
                if is_first_rank():  # which alone scores
                    check_files(drawn, self.source, key)
            if hasattr(drawn, "sampler"):
                guidance = getattr(drawn, "guidance", NO_GUIDANCE)
                self.check_sampling(net, key, drawn.sampler, guidance)
                decoder = getattr(drawn, "autoencoder", None)
                check_decoder(net, self.process, decoder, self.source)

    def check_sampling(
        self, net: Backbone, key: str, sampler: Sampler, guidance: Guidance = NO_GUIDANCE
    ) -> None:
        """Refuse a sampler or guidance that would fail only when it is used.

        Raises:
            InputError: see `tinyfusion.commands.checks.check_sampling`.
        """
        check_sampling(net, self.process, key, sampler, guidance)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The sampling and scoring protocol, held against the data; ``None`` for no scores.

        Raises:
            InputError: an unknown extractor, images that it does not take, files that are not
                there, or no held-out images.
        """
        if self.cfg.evaluation is None:
            return None
        evaluation: Evaluation = build(self.cfg.evaluation)
        self._check_protocol(evaluation, "evaluation")
        if is_first_rank():  # which alone scores
            check_files(evaluation, self.source, "evaluation")
        return evaluation

    def _check_protocol(self, evaluation: Evaluation, key: str) -> None:
        check_extractor(evaluation, self.source, key)
        check_held_out(self.cfg.data)

    @cached_property
    def held_out(self) -> HeldOutLoss | None:
        """The fixed held-out batch; ``None`` if no image is held out."""
        images, conditioning = self.source.held_out()
        return HeldOutLoss(self.process, images, conditioning) if len(images) else None

    def state_sizes(self, net: Backbone, blocks: Sequence[int], samples: int) -> list[float]:
        """Mean square of the states after some blocks, on noised training images.

        Args:
            net: the network; it is moved to the job's device.
            blocks: indices of its blocks.
            samples: noised images.
        """
        calibration = calibration_batch(self.process, self.source, samples, self.seed)
        return mean_squares(net.to(self.device), blocks, calibration)

    def summary(self, net: Backbone, teacher: Backbone | None = None) -> dict[str, float]:
        """Size and held-out figures of a model, without sampling.

        Args:
            net: the model; it is moved to the job's device.
            teacher: if given, ``teacher_distance`` is added.
        """
        row: dict[str, float] = {"depth": net.depth, "parameters": parameters(net)}
        if self.held_out is not None:
            out = self.held_out.predict(net.to(self.device))
            losses = self.held_out.of(out)
            row |= {
                "held_out_loss": losses["loss"],
                "held_out_loss_stderr": losses["loss_stderr"],
            }
            if teacher is not None:
                wanted = self.held_out.predict(teacher.to(self.device))
                row["teacher_distance"] = self.held_out.distance(out, wanted)
        return row

    def settings(self, stage: str) -> TrainingSettings:
        """Training settings of a stage.

        Raises:
            InputError: there are none, or the global batch can't be split evenly.
        """
        settings: TrainingSettings = build(self.cfg.training).of(stage)
        key = f"training.{stage}.batch_size"
        split_batch(key, settings.batch_size, self.world, self.trainer.micro_batch)
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
        return list(self._named_callbacks().values())

    def _named_callbacks(self) -> dict[str, Callback]:
        nodes = self.cfg.callbacks if "callbacks" in self.cfg else None
        return {str(name): build(node) for name, node in (nodes or {}).items() if node is not None}

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
            build(self.cfg.training).recipe,
        )

    def log_figures(self, folder: Path) -> None:
        """Log the figures that a stage drew into ``folder``."""
        for figure in sorted(folder.glob("*.png")):
            self.tracking.image(f"{folder.name}/{figure.stem}", figure)
