"""Where a job's numbers, figures and samples are logged: CSV, TensorBoard or Weights & Biases.

One object per job; each training phase gets a Lightning logger from it, and the results of phases
(scores, figures, grids) are logged through it as well.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from tinyfusion.errors import InputError

log = logging.getLogger(__name__)


class Tracking:
    """CSV files only, and the base of the other trackers.

    Each phase writes ``<phase>/log/version_<n>/metrics.csv``; a resumed phase begins a new
    version, so that nothing logged before is lost.
    """

    def start(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """Begin a job.

        Args:
            folder: the run's folder.
            name: readable name of the run.
            config: resolved configuration as plain data.
        """
        self.folder = folder

    def logger(self, phase: str) -> Logger:
        """Logger for one training phase."""
        # Flushed at every entry: what a killed run has logged before its last resume point stays.
        return CSVLogger(self.folder / phase, name="log", flush_logs_every_n_steps=1)

    def scores(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the job, flat names to numbers."""

    def image(self, key: str, path: Path) -> None:
        """A figure or grid that was written to ``path``."""

    def finish(self) -> None:
        """End the job."""


class TensorBoard(Tracking):
    """TensorBoard event files beside the run's other files."""

    def start(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """See `Tracking.start`.

        Raises:
            InputError: TensorBoard is not installed.
        """
        super().start(folder, name, config)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "logger=tensorboard needs the package tensorboard: "
                "pip install 'tinyfusion[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        # TensorBoard renders indented text verbatim.
        text = json.dumps(dict(config), indent=2)
        self._writer.add_text("config", textwrap.indent(text, "    "))

    def logger(self, phase: str) -> Logger:
        """Event files of one phase."""
        return TensorBoardLogger(self.folder, name="tensorboard", version=phase)

    def scores(self, values: Mapping[str, Any]) -> None:
        """Scalars at step 0."""
        for key, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(key, value)

    def image(self, key: str, path: Path) -> None:
        """The picture."""
        self._writer.add_image(key, _pixels(path), dataformats="HWC")

    def finish(self) -> None:
        """Flush."""
        self._writer.close()


class _PhaseLogger(WandbLogger):
    """Curves named ``phase/metric``, so that W&B shows each phase's in a section of its own."""

    LOGGER_JOIN_CHAR = "/"


class Wandb(Tracking):
    """One Weights & Biases run per job, its curves named by phase; a resumed job continues it.

    Args:
        project: W&B project.
        entity: W&B user or team.
        offline: ``None`` logs offline, with a message, where no account is set up.
    """

    def __init__(
        self, project: str = "tinyfusion", entity: str | None = None, offline: bool | None = None
    ) -> None:
        self.project, self.entity, self.offline = project, entity, offline

    def start(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """See `Tracking.start`."""
        super().start(folder, name, config)
        import wandb

        offline = self.offline
        if offline is None:
            mode = os.environ.get("WANDB_MODE")
            offline = mode == "offline" or (mode is None and not _has_account())
            if offline and mode is None:
                log.info(
                    "no Weights & Biases account found: logging offline to %s; "
                    "upload later with 'wandb sync'",
                    folder / "wandb",
                )
        os.environ.setdefault("WANDB_SILENT", "true")
        identity = hashlib.blake2b(str(folder.absolute()).encode(), digest_size=8).hexdigest()
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=name,
            dir=str(folder),
            config=dict(config),
            id=identity,
            # Offline there is nothing to resume: the parts are joined when they are uploaded.
            resume=None if offline else "allow",
            mode="offline" if offline else None,
            reinit="finish_previous",
            # Else W&B takes over stdout, and progress bars with it.
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def logger(self, phase: str) -> Logger:
        """Curves of one phase, prefixed by its name."""
        return _PhaseLogger(experiment=self._run, prefix=phase, save_dir=str(self.folder))

    def scores(self, values: Mapping[str, Any]) -> None:
        """Into the run's summary."""
        self._run.summary.update(dict(values))

    def image(self, key: str, path: Path) -> None:
        """The picture."""
        import wandb

        self._run.log({key: wandb.Image(str(path))})

    def finish(self) -> None:
        """Close the W&B run."""
        self._run.finish()


def log_picture(logger: Logger, key: str, path: Path, step: int) -> None:
    """Log a picture at a step of training; where a logger takes none, its file has to do.

    Args:
        logger: logger of a phase.
        key: its name there, without the phase's.
        path: the picture.
        step: the optimiser step.
    """
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [str(path)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, _pixels(path), step, dataformats="HWC")


def _pixels(path: Path) -> Any:
    """A picture's pixels, uint8, shape (H, W, 3)."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _has_account() -> bool:
    """Whether an API key is known, without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
