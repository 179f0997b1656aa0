"""Being asked to stop: by the keyboard, by whoever ends the process, or by a scheduler's warning.

Work is stopped where it is, unless it is `stoppable` at certain points only: training goes on to
the end of the step at hand, so that nothing is lost.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from tinyfusion.ranks import is_first_rank

SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
"""What asks a process to stop; the last three are how schedulers warn before a job's time is up."""


class Interrupted(BaseException):
    """This process was asked to stop; like ``KeyboardInterrupt``, not caught with other errors.

    Args:
        number: the signal's number.

    Attributes:
        resume: folder by which the work is resumed; ``None`` if nothing was begun.
        again: how the work goes on where that is otherwise.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.resume: Path | None = None
        self.again: str | None = None

    @property
    def status(self) -> int:
        """Exit status by convention."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.number).name}"


@dataclass
class _State:
    """What is known in this process.

    Attributes:
        owner: the process that handles signals; others are forked from it.
        waits: whether the work at hand stops at points of its own.
        asked: the signal that asked to stop; 0 for none.
    """

    owner: int = 0
    waits: bool = False
    asked: int = 0


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Raise `Interrupted` in the main thread when this process is asked to stop.

    Only the first signal counts, and the keyboard's second one, which ends the process on the
    spot. Signals that the process was started to ignore (``nohup``), or that somebody else handles
    (``submitit``), are left alone.
    """
    if threading.current_thread() is not threading.main_thread() or _state.owner == os.getpid():
        yield
        return
    before: dict[signal.Signals, Any] = {}
    for number in SIGNALS:
        known = signal.getsignal(number)
        if known in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = known
            signal.signal(number, _receive)
    _state.owner, _state.waits, _state.asked = os.getpid(), False, 0
    hook, sys.unraisablehook = sys.unraisablehook, _again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _state.owner = _state.asked = 0
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stoppable() -> Iterator[None]:
    """Work that stops by itself, at points where it asks `asked`; no later than at its end.

    Raises:
        Interrupted: this process was asked to stop.
        KeyboardInterrupt: the same by the keyboard, in a script or notebook, which knows no other.
    """
    of_command = _state.owner == os.getpid()
    try:
        with handled():
            _state.waits = True
            try:
                yield
            finally:
                _state.waits = False
            if _state.asked:  # and the work came to its end before it asked
                raise Interrupted(_state.asked)
    except Interrupted as stop:
        if of_command or stop.number != signal.SIGINT:
            raise
        raise KeyboardInterrupt from None


def asked() -> int:
    """Number of the signal by which this process was asked to stop; 0 if it was not."""
    return _state.asked


def _receive(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.owner:
        _receive_forked(number)
        return
    if _state.asked:
        return
    _state.asked = number
    # Impatience ends the process even within a long call.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not _state.waits:
        raise Interrupted(number)
    if is_first_rank():
        name = signal.Signals(number).name
        text = f"tinyfusion: {name}: stopping after this step (Ctrl-C stops at once)\n"
        with suppress(OSError):  # not printed: this may have come amid printing
            os.write(2, text.encode())


def _again(lost: Any) -> None:
    """Raise `Interrupted` once more where Python has dropped it, as it does within a ``__del__``.

    Args:
        lost: what was dropped and where; see `sys.unraisablehook`.
    """
    if not isinstance(lost.exc_value, Interrupted):
        sys.__unraisablehook__(lost)
    elif not _state.waits:  # else it is asked for
        number, _state.asked = lost.exc_value.number, 0
        # Later: here it would be dropped again.
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


def _receive_forked(number: int) -> None:
    """In a process that loads data: stay until the one that forked it has made its step."""
    if number == signal.SIGTERM:  # how that one ends it
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@cache
def end_with_parent() -> None:
    """End this process when the one that started it is gone: a killed sweep leaves none behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
