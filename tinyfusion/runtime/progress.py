"""How far long work on many images is, how fast, and how long it still takes."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger(__name__)

SECONDS_PER_LINE = 10


class ImageProgress:
    """A bar where someone is looking, otherwise a line now and then.

    Args:
        what: what is done, at the begin of a line: the command's name.
        total: number of images.
        done: how many of them are there at the start; they say nothing about the speed.
        bar: draw a bar instead of writing lines.
    """

    def __init__(self, what: str, total: int, done: int = 0, bar: bool = False) -> None:
        self.what, self.total, self.done = what, total, float(done)
        self._began = self._shown = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._before = float(done)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            disable=not bar,
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total, completed=done, said="")
        self._lines = not bar

    def __enter__(self) -> ImageProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, images: float) -> None:
        """So many more images are done; a part of one counts, too."""
        self.reach(self.done + images)

    def reach(self, done: float) -> None:
        """So many images are done in all."""
        now = time.monotonic()
        self.done = done
        if self._first is None and done > self._before:
            # Starting processes and loading models says nothing about the time left.
            self._first = (now, done)
            self._shown = now if self._lines else 0.0
        if done < self.total and now - self._shown < (SECONDS_PER_LINE if self._lines else 0.2):
            return
        self._shown = now
        said = self._said(now)
        self._bar.update(self._task, completed=done, said=said)
        if self._lines:
            log.info("%s: %s", self.what, said)

    def _said(self, now: float) -> str:
        began, before = (self._began, self._before)
        if self._first is not None and self.done > self._first[1]:
            began, before = self._first
        speed = max(self.done - before, 1e-9) / max(now - began, 1e-9)
        return (
            f"{int(self.done):,} of {self.total:,} images ({100 * self.done / self.total:.1f} %), "
            f"{speed:.1f} images/s, {_duration((self.total - self.done) / speed)} left"
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
