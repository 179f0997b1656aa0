"""Running one training stage: trainer, data, resume."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from tinyfusion.callbacks.progress import StageProgress
from tinyfusion.callbacks.resume import RESUME_FILE, AtomicCheckpointIO, ResumeCheckpoint
from tinyfusion.data.datamodule import TrainingData
from tinyfusion.data.source import ImageSource
from tinyfusion.settings.schema import TrainerSettings, TrainingSettings
from tinyfusion.training.module import DenoiserTraining

log = logging.getLogger(__name__)

# Lightning's advice for other kinds of training; each is answered by the design of a stage.
_QUIET = (
    ".*does not have many workers.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*not a full epoch.*",
    ".*Found .* module\\(s\\) in eval mode.*",
    ".*mid-epoch.*",
    ".*You're resuming from a checkpoint that ended before the epoch ended.*",
)


def fit(
    module: DenoiserTraining,
    source: ImageSource,
    settings: TrainingSettings,
    trainer_settings: TrainerSettings,
    folder: Path,
    stage: str,
    seed: int,
    logger: Logger | None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train ``module``, going on from ``folder/resume.ckpt`` if there is one.

    Args:
        module: what to train; holds the result afterwards.
        source: training images.
        settings: length and batch of the stage.
        trainer_settings: device, precision, progress.
        folder: folder of the stage, for the resume checkpoint and what callbacks write.
        stage: name of the stage; enters the random draws.
        seed: the run's seed.
        logger: Lightning logger.
        callbacks: further callbacks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = TrainingData(
        source,
        seed,
        stage,
        settings.steps,
        settings.batch_size,
        settings.accumulate,
        trainer_settings.num_workers,
    )
    images = settings.steps * settings.batch_size
    log.info(
        "%s: %d steps x global batch %d = %s images (%.1f epochs)",
        stage,
        settings.steps,
        settings.batch_size,
        f"{images:,}",
        images / len(source),
    )
    extra: list[Callback] = [StageProgress(stage)] if trainer_settings.progress else []
    resume = folder / RESUME_FILE
    if resume.is_file():
        log.info("%s: going on from %s", stage, resume)
    with _quiet():
        trainer = new_trainer(
            trainer_settings,
            max_steps=settings.steps,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            log_every_n_steps=min(trainer_settings.log_every, settings.steps),
            logger=logger if logger is not None else False,
            callbacks=[*callbacks, *extra, ResumeCheckpoint(folder, trainer_settings.resume_every)],
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,
            default_root_dir=folder,
            # Lightning checks a gradient clip value only if one is given; the module clips itself.
            gradient_clip_val=None,
            num_sanity_val_steps=0,
        )
        module.train()
        _train(trainer, module, data, resume if resume.is_file() else None)


def new_trainer(settings: TrainerSettings, **options: Any) -> Trainer:
    """A trainer on the devices that were asked for.

    Args:
        settings: device, precision and strategy.
        options: further arguments of Lightning's ``Trainer``.
    """
    with _quiet():
        return Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            strategy=settings.strategy,
            precision=settings.precision,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )


def _train(
    trainer: Trainer, module: DenoiserTraining, data: TrainingData, resume: Path | None
) -> None:
    """``trainer.fit``, with an interrupt from the keyboard passed on as one."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit:
        # Lightning turns the interrupt into an exit and leaves further ones ignored.
        if trainer.interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on the console."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for pattern in _QUIET:
            warnings.filterwarnings("ignore", pattern)
        yield
