"""Where a job's numbers, figures and samples are logged: CSV files and any loggers besides.

One object per job (`Trackers`); each training phase gets its Lightning loggers from it, and the
results of phases (scores, figures, grids) are logged through it as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

from tinyfusion.errors import InputError, one_line

_ALWAYS = "(CSV files)"
"""What no logger in a configuration is called."""


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
        # Flushed at every entry: what a killed run has logged before its last resume point stays.
        return CSVLogger(self.folder / phase, name="log", flush_logs_every_n_steps=1)

    def scores(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the job, flat names to numbers."""

    def image(self, key: str, path: Path) -> None:
        """A figure or grid that was written to ``path``."""

    def finish(self) -> None:
        """End the job."""


class Trackers:
    """All places that a job is logged to; CSV files are always among them.

    Args:
        places: by the name of each in the configuration, a `Tracking` or a Lightning logger.

    Raises:
        InputError: one of them is neither.
    """

    def __init__(self, places: Mapping[str, Any] | None = None) -> None:
        self._places: dict[str, Tracking] = {_ALWAYS: Tracking()}
        for name, place in (places or {}).items():
            if isinstance(place, Logger):
                self._places[name] = LightningTracking(place)
            elif not isinstance(place, Tracking):
                raise InputError(
                    f"logger.{name}: a {type(place).__name__} is neither a Lightning logger nor a "
                    "tinyfusion.tracking.contract.Tracking"
                )
            elif type(place) is not Tracking:
                self._places[name] = place

    def start(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """See `Tracking.start`.

        Raises:
            InputError: one of them can't be logged to; those that have begun are ended, and nothing
            is left of them in the folder.
        """
        begun: list[Tracking] = []
        before = set(folder.iterdir()) if folder.is_dir() else set()
        for key, place in self._places.items():
            try:
                place.start(folder, name, config)
            # A library's refusals are of all kinds.
            except Exception as error:
                for other in begun:
                    other.finish()
                for made in set(folder.iterdir()) - before if folder.is_dir() else ():
                    shutil.rmtree(made) if made.is_dir() else made.unlink()
                raise InputError(f"logger.{key}: {one_line(error)}") from error
            begun.append(place)

    def loggers(self, phase: str) -> list[Logger]:
        """Loggers for one training phase."""
        return [place.logger(phase) for place in self._places.values()]

    def scores(self, values: Mapping[str, Any]) -> None:
        """See `Tracking.scores`."""
        for place in self._places.values():
            place.scores(values)

    def image(self, key: str, path: Path) -> None:
        """See `Tracking.image`."""
        for place in self._places.values():
            place.image(key, path)

    def finish(self) -> None:
        """See `Tracking.finish`."""
        for place in self._places.values():
            place.finish()


class LightningTracking(Tracking):
    """Any of Lightning's loggers, or one's own: one for the whole job, its curves named by phase.

    Args:
        logger: the logger.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def start(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """See `Tracking.start`."""
        super().start(folder, name, config)
        self._logger.log_hyperparams(dict(config))

    def logger(self, phase: str) -> Logger:
        """Curves of one phase, prefixed by its name."""
        return _OfPhase(self._logger, phase)

    def scores(self, values: Mapping[str, Any]) -> None:
        """Those that are numbers, as metrics without a step."""
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        self._logger.log_metrics(numbers)

    def image(self, key: str, path: Path) -> None:
        """The picture, if the logger takes any."""
        log_picture(self._logger, key, path, None)

    def finish(self) -> None:
        """End the logger's run."""
        self._logger.finalize("success")


class _OfPhase(Logger):
    """A logger as one phase sees it, whose end is not the logger's."""

    def __init__(self, logger: Logger, phase: str) -> None:
        super().__init__()
        self.whole, self.phase = logger, phase

    @property
    def name(self) -> str | None:
        return self.whole.name

    @property
    def version(self) -> int | str | None:
        return self.whole.version

    @property
    def save_dir(self) -> str | None:
        return self.whole.save_dir

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Each metric with the phase's name before it."""
        self.whole.log_metrics({f"{self.phase}/{name}": metrics[name] for name in metrics}, step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Done for the job."""

    def save(self) -> None:
        self.whole.save()

    def finalize(self, status: str) -> None:
        self.whole.save()


def log_picture(logger: Logger, key: str, path: Path, step: int | None) -> None:
    """Log a picture; where a logger takes none, its file has to do.

    Taken are `log_image`, as some of Lightning's loggers have it, and what the experiments of
    TensorBoard and MLflow do instead.

    Args:
        logger: logger of a job or of a phase.
        key: its name there, without the phase's.
        path: the picture.
        step: the optimiser step, if it belongs to one.
    """
    whole = logger
    if isinstance(logger, _OfPhase):
        whole, key = logger.whole, f"{logger.phase}/{key}"
    steps = {} if step is None else {"step": step}
    if hasattr(whole, "log_image"):
        whole.log_image(key, [str(path)], **steps)
        return
    experiment: Any = getattr(whole, "experiment", None)
    if hasattr(experiment, "add_image"):
        experiment.add_image(key, pixels(path), step, dataformats="HWC")
    elif hasattr(experiment, "log_artifact") and hasattr(whole, "run_id"):
        experiment.log_artifact(whole.run_id, str(path), f"{key}/{step}" if steps else key)


def pixels(path: Path) -> Any:
    """A picture's pixels, uint8, shape (H, W, 3)."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
