"""Messages of this package on the console and in the run's log file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tinyfusion.errors import refused_by_system
from tinyfusion.ranks import is_first_rank
from tinyfusion.runtime.folder import LOG_FILE
from tinyfusion.runtime.streams import PatientStream


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
        logger.addHandler(console)
        try:
            file = _File(folder / LOG_FILE, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            _say_lost(error, folder / LOG_FILE)
        else:
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logger.addHandler(file)
    if isinstance(sys.stdout, PatientStream):
        sys.stdout.results = folder
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


class _File(logging.FileHandler):
    """Says once, not at every message, that it can't be written."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Of logging; called while the error is handled."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed:
            self.failed = True
            _say_lost(error, self.baseFilename)

    def close(self) -> None:
        """Close the file, whether or not what it holds back can still be written."""
        with suppress(OSError):
            super().close()


def _say_lost(error: OSError, file: Path | str) -> None:
    print(f"tinyfusion: the log is lost: {refused_by_system(error, file)}", file=sys.stderr)


def _close(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
