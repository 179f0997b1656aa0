"""All places that a job is logged to: CSV files and any loggers besides.

One object per job (`Trackers`); each training phase gets its Lightning loggers from it, and the
results of phases (scores, figures, grids) are logged through it as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyfusion.errors import InputError, one_line
from tinyfusion.files import sha256_of
from tinyfusion.tracking.contract import Tracking
from tinyfusion.tracking.keys import metric_key

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

_ALWAYS = "(CSV files)"
"""What no logger in a configuration is called."""


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
            if type(place) is not Tracking:
                self._places[name] = place if isinstance(place, Tracking) else _wrapped(name, place)
        self._pictures: dict[str, str] = {}

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
                    other.abandon()
                for made in set(folder.iterdir()) - before if folder.is_dir() else ():
                    shutil.rmtree(made) if made.is_dir() else made.unlink()
                raise InputError(f"logger.{key}: {one_line(error)}") from error
            begun.append(place)

    def loggers(self, phase: str) -> list[Logger]:
        """Loggers for one training phase."""
        return [place.logger(phase) for place in self._places.values()]

    def scores(self, values: Mapping[str, Any]) -> None:
        """See `Tracking.scores`; names are those of `metric_key`."""
        named = {metric_key(name): value for name, value in values.items()}
        for place in self._places.values():
            place.scores(named)

    def image(self, key: str, path: Path) -> None:
        """See `Tracking.image`; a picture that is the last one of its key is not logged anew."""
        sha256 = sha256_of(path)
        if self._pictures.get(key) == sha256:
            return
        self._pictures[key] = sha256
        for place in self._places.values():
            place.image(key, path)

    def finish(self) -> None:
        """See `Tracking.finish`."""
        for place in self._places.values():
            place.finish()


def _wrapped(name: str, logger: Any) -> Tracking:
    """A Lightning logger as a `Tracking`.

    Raises:
        InputError: it is none.
    """
    from lightning.pytorch.loggers import Logger

    from tinyfusion.tracking.of_lightning import LightningTracking

    if not isinstance(logger, Logger):
        raise InputError(
            f"logger.{name}: a {type(logger).__name__} is neither a Lightning logger nor a "
            "tinyfusion.tracking.contract.Tracking"
        )
    return LightningTracking(logger)
