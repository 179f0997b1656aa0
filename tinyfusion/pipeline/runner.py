"""The one place where phases are trained: with their settings, resumed if interrupted, logged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch.optim import Optimizer

from tinyfusion.backbones.contract import Backbone
from tinyfusion.data.source import ImageSource
from tinyfusion.pipeline.batching import Split, split_batch
from tinyfusion.processes.contract import Process
from tinyfusion.seeding import StepNoise
from tinyfusion.tracking.trackers import Trackers
from tinyfusion.training.phases import RESUME_FILE, Phase
from tinyfusion.training.schedules import LearningRate
from tinyfusion.training.settings import PhaseSettings, TrainerSettings, TrainingSettings

if TYPE_CHECKING:  # Lightning takes seconds to import; settings are checked without it
    from lightning.pytorch import Callback, Trainer

    from tinyfusion.training.module import DenoiserTraining


class MakeOptimizer(Protocol):
    """An optimiser's class, or a partial of it."""

    def __call__(self, groups: Iterable[Mapping[str, Any]], *, lr: float) -> Optimizer:
        """The optimiser of these parameter groups."""


@dataclass(frozen=True)
class PhaseRunner:
    """What the phases of one command share, and how they are executed.

    Attributes:
        process: the process.
        source: training images.
        training: settings of phases by name.
        trainer: device, precision, strategy, intervals; or a trainer of the user's own, which then
            logs, saves and is resumed as its maker wants.
        optimizer: makes an optimiser.
        seed: seed of all draws.
        devices: devices over all nodes.
        tracking: where phases log.
        make_callbacks: makes the callbacks of one phase.
    """

    process: Process
    source: ImageSource
    training: PhaseSettings
    trainer: TrainerSettings | Trainer
    optimizer: MakeOptimizer
    seed: int = 0
    devices: int = 1
    tracking: Trackers | None = None
    make_callbacks: Callable[[], Sequence[Callback]] = field(default=list)

    def settings(self, name: str) -> TrainingSettings:
        """Settings of the phase ``name``.

        Raises:
            InputError: there are none, or the devices can't share the global batch evenly.
        """
        settings = self.training.of(name)
        self.split(name, settings)
        return settings

    def settings_of(self, phase: Phase) -> TrainingSettings:
        """Settings of a phase: its own, or those under its name.

        Raises:
            InputError: see `settings`.
        """
        if phase.settings is None:
            return self.settings(phase.name)
        settings = self.training.shortened(phase.settings)
        self.split(phase.name, settings)
        return settings

    def split(self, name: str, settings: TrainingSettings) -> Split:
        """How the global batch is shared out among devices and micro-batches.

        Raises:
            InputError: the devices can't share it evenly.
        """
        key = f"training.{name}.batch_size"
        if not isinstance(self.trainer, TrainerSettings):
            share = settings.batch_size // self.trainer.world_size
            micro = max(1, share // self.trainer.accumulate_grad_batches)
            return split_batch(key, settings.batch_size, self.trainer.world_size, micro)
        return split_batch(key, settings.batch_size, self.devices, self.trainer.micro_batch)

    def shared(
        self, name: str, net: Backbone, settings: TrainingSettings | None = None
    ) -> dict[str, Any]:
        """Keyword arguments of `DenoiserTraining` for the phase ``name`` of a network.

        Args:
            name: the phase's name; enters the random draws.
            net: the network.
            settings: the phase's own; ``None`` takes those under its name.

        Raises:
            InputError: see `settings`.
        """
        settings = self.training.shortened(settings) if settings else self.settings(name)
        drop = settings.label_drop
        if drop is None:
            drop = float(net.config().get("class_dropout_prob", 0.0))
        end = settings.learning_rate_end
        return {
            "process": self.process,
            "noise": StepNoise(self.seed, name),
            "total_steps": settings.steps,
            "optimizer": lambda groups: self.optimizer(groups, lr=settings.learning_rate),
            "learning_rate": LearningRate(
                settings.learning_rate,
                settings.learning_rate if end is None else end,
                settings.warm_up,
            ),
            "clip_norm": settings.clip_norm,
            "label_drop": drop,
        }

    def run(self, phases: Sequence[Phase], folder: Path) -> dict[str, DenoiserTraining]:
        """Execute phases in order, resumed where they were interrupted.

        A single phase lies in ``folder``; of several each has a folder of its own name in it and
        keeps its last resume checkpoint until the caller calls `forget`, so that finished phases
        are restored instead of trained again.

        Args:
            phases: what to train.
            folder: for resume checkpoints, logs and what callbacks write.

        Returns:
            The trained modules by the phases' names.
        """
        from tinyfusion.pipeline.fit import fit, fit_within

        trained: dict[str, DenoiserTraining] = {}
        for phase in phases:
            own = folder if len(phases) == 1 else folder / phase.name
            module = phase.module()
            trained[phase.name] = module
            if not isinstance(self.trainer, TrainerSettings):
                settings, callbacks = self.settings_of(phase), self.make_callbacks()
                fit_within(
                    self.trainer, module, self.source, settings, phase.name, self.seed, callbacks
                )
                continue
            fit(
                module,
                self.source,
                self.settings_of(phase),
                self.trainer,
                own,
                phase.name,
                self.seed,
                [] if self.tracking is None else self.tracking.loggers(_log_name(folder, own)),
                self.make_callbacks(),
                self.training.recipe,
                keep_end=len(phases) > 1,
            )
            self.log_figures(own)
        return trained

    def log_figures(self, folder: Path) -> None:
        """Log the figures that were drawn into a phase's folder."""
        if self.tracking is None:
            return
        for figure in sorted(folder.glob("*.png")):
            self.tracking.image(f"{folder.name}/{figure.stem}", figure)


def forget(folder: Path) -> None:
    """Remove the resume checkpoints of phases whose outcome has been written."""
    for file in (folder / RESUME_FILE, *folder.glob(f"*/{RESUME_FILE}")):
        file.unlink(missing_ok=True)


def _log_name(folder: Path, own: Path) -> str:
    """Folder of a phase's log within the run's folder."""
    return folder.name if own == folder else f"{folder.name}/{own.name}"
