"""Progress of long work: how much is done, how fast, and how long the rest takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from tinyfusion.text import readable_duration

log = logging.getLogger(__name__)

SECONDS_PER_LINE = 10.0
SECONDS_PER_BAR = 0.2


class Progress:
    """A bar on a terminal, otherwise a line now and then and at the end.

    Args:
        what: name of the work, at the start of a line: a command or a training phase.
        total: number of units in all.
        done: how many of them are there at the start; they don't count for the speed.
        bar: draw a bar instead of writing lines.
        unit: what is counted, in the plural.
        seconds: least time between two lines; ``None`` writes none.
        share: least part of ``total`` between two lines.
        stays: leave the finished bar on the screen.
    """

    def __init__(
        self,
        what: str,
        total: int,
        done: float = 0,
        bar: bool = False,
        unit: str = "images",
        seconds: float | None = SECONDS_PER_LINE,
        share: float = 0.0,
        stays: bool = False,
    ) -> None:
        self.what, self.total, self.done, self.unit = what, total, float(done), unit
        self._silent = seconds is None and not bar
        self._wait = SECONDS_PER_BAR if bar else seconds or 0.0
        self._stride = 0.0 if bar else share * total
        self._start = self._shown = (time.monotonic(), float(done))
        self._first: tuple[float, float] | None = None
        self._bar: Bars | None = None
        if bar:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Bars(*columns, transient=not stays)
            self._task = self._bar.add_task(what, total=total, text="")
            self._bar.update(self._task, completed=done)

    def start(self) -> None:
        """Draw the bar."""
        if self._bar is not None:
            self._bar.start()

    def stop(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> Progress:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __call__(self, more: float) -> None:
        """So many more units are done; a part of one counts, too."""
        self.reach(self.done + more)

    def reach(self, done: float, note: Callable[[], str] | None = None) -> None:
        """So many units are done in all.

        Args:
            done: number of units.
            note: makes further text for the line, such as the loss; called for written lines only.
        """
        now, before = time.monotonic(), self.done
        # Parts of a unit need not add up to exactly 1.
        finished = done > self.total - 1e-3
        self.done = done = self.total if finished else done
        if self._first is None and done > before:
            # Starting processes and loading models says nothing about the time left.
            self._first = (now, done)
            self._shown = (0.0 if self._bar else now, self._shown[1])
        waited = now - self._shown[0] >= self._wait and done - self._shown[1] >= self._stride
        if self._silent or not (finished or waited):
            return
        self._shown = (now, done)
        text = self._text(now, note() if note is not None else "")
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        else:
            log.info("%s: %s", self.what, text)

    def _text(self, now: float, note: str) -> str:
        began, before = self._start
        # Units that arrive together with the first ones were made before it, too.
        if self._first is not None and now - self._first[0] >= 1:
            began, before = self._first
        speed = max(self.done - before, 1e-9) / max(now - began, 1e-9)
        left = readable_duration((self.total - self.done) / speed)
        parts = [
            f"{int(self.done):,} of {self.total:,} {self.unit} "
            f"({100 * self.done / self.total:.1f} %)",
            *([note] if note else []),
            f"{speed:.1f} {self.unit}/s",
            f"{left} left",
        ]
        return ", ".join(parts)
