"""Messages of this package on the console and in the run's log file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tinyfusion.ranks import is_first_rank
from tinyfusion.runtime.folder import LOG_FILE


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Write messages to the console and to ``run.log``; those of further ranks nowhere."""
    logger = logging.getLogger("tinyfusion")
    logger.setLevel(logging.INFO if is_first_rank() else logging.CRITICAL)
    logger.propagate = False
    _close(logger)
    if is_first_rank():
        console = _Console()
        console.setFormatter(logging.Formatter("%(message)s"))
        file = logging.FileHandler(folder / LOG_FILE)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for handler in (console, file):
            logger.addHandler(handler)
    try:
        yield
    finally:
        _close(logger)


class _Console(logging.StreamHandler):
    """Writes to what ``sys.stdout`` is at the moment: progress bars put something else there."""

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


def _close(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
