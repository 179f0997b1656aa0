"""Lightning's own loggers, or a user's: one for the whole job, its curves named by phase."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from tinyfusion.tracking.contract import Tracking, pixels


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
