"""One place that a job's numbers, figures and samples are logged to; the base of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # takes seconds to import, and a configuration names this class
    from lightning.pytorch.loggers import Logger


class Tracking:
    """One place that a job is logged to: CSV files, and the base of the others.

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
        from lightning.pytorch.loggers import CSVLogger

        # Flushed at every entry: what a killed run has logged before its last resume point stays.
        return CSVLogger(self.folder / phase, name="log", flush_logs_every_n_steps=1)

    def scores(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the job, flat names to numbers."""

    def image(self, key: str, path: Path) -> None:
        """A figure or grid that was written to ``path``."""

    def finish(self) -> None:
        """End the job."""

    def abandon(self) -> None:
        """End a job that is refused before any work, as another logger can't begin."""
        self.finish()


def pixels(path: Path) -> Any:
    """A picture's pixels, uint8, shape (H, W, 3)."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
