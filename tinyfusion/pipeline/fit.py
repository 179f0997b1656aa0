"""Running one training phase: trainer, data, resume."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from lightning.pytorch.utilities import rank_zero_only

from tinyfusion.backbones.contract import compile_blocks, recompute_blocks
from tinyfusion.callbacks.memory import MemoryReport
from tinyfusion.callbacks.progress import PhaseProgress
from tinyfusion.callbacks.resume import AtomicCheckpointIO, ResumeCheckpoint
from tinyfusion.data.datamodule import TrainingData
from tinyfusion.data.source import ImageSource
from tinyfusion.data.stream import BatchStream, StreamData
from tinyfusion.errors import InputError
from tinyfusion.interrupts import stoppable
from tinyfusion.pipeline.batching import split_batch
from tinyfusion.pipeline.devices import devices_per_node, loader_processes
from tinyfusion.pipeline.schedule import announce
from tinyfusion.pipeline.strategies import RankEnvironment, strategy_of
from tinyfusion.ranks import rank
from tinyfusion.samplers.generate import AUTOCAST
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.phases import RESUME_FILE
from tinyfusion.training.settings import TrainerSettings, TrainingSettings

log = logging.getLogger(__name__)

# Lightning's advice for other kinds of training; each is answered by the design of a phase.
_QUIET = (
    ".*does not have many workers.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*not a full epoch.*",
    ".*Found .* module\\(s\\) in eval mode.*",
    ".*mid-epoch.*",
    # Said by the check before work, as an error.
    ".*AMP with fp16 is not supported on CPU.*",
    ".*You're resuming from a checkpoint that ended before the epoch ended.*",
)


def fit(
    module: DenoiserTraining,
    source: ImageSource,
    settings: TrainingSettings,
    trainer_settings: TrainerSettings,
    folder: Path,
    phase: str,
    seed: int,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback] = (),
    recipe: str | None = None,
    keep_end: bool = False,
) -> None:
    """Train ``module``, resumed from ``folder/resume.ckpt`` if there is one.

    Args:
        module: what to train; holds the result afterwards.
        source: training images.
        settings: length and batch of the phase.
        trainer_settings: device, precision, progress.
        folder: folder of the phase, for the resume checkpoint and what callbacks write.
        phase: name of the phase; enters the random draws.
        seed: the run's seed.
        loggers: Lightning loggers.
        callbacks: further callbacks.
        recipe: published recipe that the settings are meant to follow, if any.
        keep_end: leave a resume checkpoint of the last step, which restores the outcome.

    Raises:
        InputError: the devices can't share the global batch evenly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    extra: list[Callback] = [
        MicroBatchCount(),
        MemoryReport(phase, count=not trainer_settings.compile),
    ]
    if trainer_settings.progress:
        extra.append(PhaseProgress(phase))
    resume = folder / RESUME_FILE
    if resume.is_file():
        log.info("%s: resumed from %s", phase, resume)
    with _quiet():
        trainer = new_trainer(
            trainer_settings,
            module.leaves_unused,
            max_steps=settings.steps,
            max_epochs=-1,
            log_every_n_steps=min(trainer_settings.log_every, settings.steps),
            logger=list(loggers),
            callbacks=[
                *callbacks,
                *extra,
                ResumeCheckpoint(folder, trainer_settings.resume_every, keep_end),
            ],
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,
            default_root_dir=folder,
            # Lightning checks a gradient clip value only if one is given; the module clips itself.
            gradient_clip_val=None,
            num_sanity_val_steps=0,
            profiler=_profiler(trainer_settings, folder),
        )
        split = split_batch(
            f"training.{phase}.batch_size",
            settings.batch_size,
            trainer.world_size,
            trainer_settings.micro_batch,
        )
        # Known only now: the trainer has counted the devices.
        trainer.accumulate_grad_batches = split.micro_batches
        data = training_data(
            source,
            seed,
            phase,
            settings,
            split.micro_batches,
            loader_processes(trainer_settings),
        )
        announce(module, settings, trainer_settings, split, phase, len(source), recipe)
        prepare(module, trainer_settings)
        module.train()
        _train(trainer, module, data, resume if resume.is_file() else None)


def training_data(
    source: ImageSource,
    seed: int,
    phase: str,
    settings: TrainingSettings,
    accumulate: int,
    workers: int = 0,
) -> LightningDataModule:
    """Training batches of one phase.

    Args:
        source: the data; of a `BatchStream` the batches are taken as they come.
        seed: the run's seed.
        phase: name of the phase; enters the random draws.
        settings: length and batch.
        accumulate: micro-batches per optimiser step and device.
        workers: processes that load batches.
    """
    if isinstance(source, BatchStream):
        return StreamData(source, settings.steps, accumulate)
    return TrainingData(
        source, seed, phase, settings.steps, settings.batch_size, accumulate, workers
    )


def fit_within(
    trainer: Trainer,
    module: DenoiserTraining,
    source: ImageSource,
    settings: TrainingSettings,
    phase: str,
    seed: int,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train ``module`` under a trainer that the user made.

    Its devices, precision, strategy, logger and callbacks are used as they are; length and data
    are the phase's. It may be used again for the next phase, which begins at step 0.

    Args:
        trainer: the trainer.
        module: what to train; holds the result afterwards.
        source: training data.
        settings: length and batch of the phase.
        phase: name of the phase; enters the random draws.
        seed: seed of all draws.
        callbacks: further callbacks for this phase.

    Raises:
        InputError: devices and micro-batches can't share the global batch evenly.
    """
    accumulate = trainer.accumulate_grad_batches
    parts = trainer.world_size * accumulate
    if settings.batch_size % parts:
        raise InputError(
            f"batch_size={settings.batch_size} can't be shared evenly by {trainer.world_size} "
            f"device(s) x accumulate_grad_batches={accumulate}; valid: a multiple of {parts}"
        )
    # Set by Lightning's connector, which the class does not tell type checkers.
    own_callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    before = (list(own_callbacks), trainer.fit_loop.max_epochs, trainer.max_steps)
    own_callbacks += [MicroBatchCount(), *callbacks]
    trainer.fit_loop.max_epochs = -1
    epoch = trainer.fit_loop.epoch_loop
    epoch.max_steps = settings.steps
    # The data module knows which rank takes which rows.
    trainer._accelerator_connector.use_distributed_sampler = False
    try:
        with _quiet():
            module.train()
            data = training_data(source, seed, phase, settings, accumulate)
            trainer.fit(module, datamodule=data)
    finally:
        own_callbacks[:], trainer.fit_loop.max_epochs, epoch.max_steps = before
        # The next phase begins at step 0.
        trainer.fit_loop.epoch_progress.reset()
        epoch.batch_progress.reset()
        epoch.scheduler_progress.reset()
        epoch.automatic_optimization.optim_progress.reset()
        epoch._batches_that_stepped = 0


def prepare(module: DenoiserTraining, settings: TrainerSettings) -> None:
    """Have blocks recomputed or compiled, and a teacher rounded, as the trainer's settings ask for.

    Only the trained network is recomputed: a teacher keeps nothing for a backward pass.
    """
    recompute_blocks(module.trained_net, settings.checkpoint_blocks)
    teacher = getattr(module, "teacher", None)
    if teacher is not None and settings.teacher_precision is not None:
        teacher.dtype = AUTOCAST.get(settings.teacher_precision, torch.float32)
    if settings.compile:
        for net in [module.trained_net, *([] if teacher is None else [teacher.net])]:
            compile_blocks(net, settings.compile_backend)


class MicroBatchCount(Callback):
    """Counts the micro-batches behind a resumed run as this run makes them.

    Lightning steps whenever *its* count of micro-batches, restored from the checkpoint, is a
    multiple of those per step. On another number of devices there may be more or fewer of them.
    """

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Shift the count; checkpoints are only ever saved between steps."""
        seen = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        shift = seen - progress["current"]["ready"]
        progress["current"] = {name: n + shift for name, n in progress["current"].items()}


def new_trainer(settings: TrainerSettings, leaves_unused: bool = False, **options: Any) -> Trainer:
    """A trainer on the devices that were asked for.

    Args:
        settings: device, precision and strategy.
        leaves_unused: see `DenoiserTraining`.
        options: further arguments of Lightning's ``Trainer``.

    Raises:
        InputError: devices, strategy and precision that don't go together or are not there.
    """
    # Lightning has read other variables than `tinyfusion.ranks`, when it was imported.
    rank_zero_only.rank = rank()  # type: ignore[attr-defined]  # a function with an attribute
    devices = devices_per_node(settings)
    plugins = [*options.pop("plugins", []), RankEnvironment(devices)]
    with _quiet():
        return Trainer(
            accelerator=settings.accelerator,
            devices=devices,
            num_nodes=settings.num_nodes,
            strategy=strategy_of(settings, leaves_unused),
            precision=cast(Any, settings.precision),  # one of PRECISIONS, by its own check
            detect_anomaly=settings.detect_anomaly,
            plugins=plugins,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )


def _profiler(settings: TrainerSettings, folder: Path) -> Profiler | None:
    kind = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}.get(settings.profiler or "")
    return None if kind is None else kind(folder, "profile")


def _train(
    trainer: Trainer, module: DenoiserTraining, data: LightningDataModule, resume: Path | None
) -> None:
    """``trainer.fit``, which may be interrupted at the end of each step."""
    # Lightning's handlers would talk to the other ranks amid a step, and requeue a SLURM job.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    with stoppable():
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on the console."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for pattern in _QUIET:
            warnings.filterwarnings("ignore", pattern)
        yield
