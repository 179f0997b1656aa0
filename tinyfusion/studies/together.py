"""Command lines carried out side by side, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue

from tinyfusion.interrupts import Interrupted
from tinyfusion.processors import processors

GRACE = 20.0
"""Seconds that the others are given to end by themselves when one has failed."""


_PROGRAM = """
import runpy
from tinyfusion.interrupts import end_with_parent
end_with_parent()  # also where that one can't end it: killed, or by a second Ctrl-C
runpy.run_module("tinyfusion", run_name="__main__", alter_sys=True)
"""


class CommandFailedError(Exception):
    """One of several command lines has failed, and the others were stopped.

    Args:
        name: which one.
        status: its exit status; negative for a signal that ended it.
        last: the last line that it printed.
    """

    def __init__(self, name: str, status: int, last: str) -> None:
        how = f"exit status {status}" if status > 0 else signal.Signals(-status).name
        super().__init__(f"{name} failed ({how}), the others were stopped: {last}")
        self.status = status if status > 0 else 128 - status


def run_together(
    commands: Mapping[str, Sequence[str]],
    at_once: int | None = None,
    shown: Callable[[str], bool] = lambda line: True,
) -> None:
    """Run ``tinyfusion`` several times at once, with an equal share of the processors each.

    A training on small tensors hardly gains by a second thread. What the commands print is printed
    here, one whole line after the other, behind the name of the command.

    Args:
        commands: arguments of ``tinyfusion`` by a name for each; those that take longest first.
        at_once: how many run at a time; ``None`` for one on each processor.
        shown: which lines are printed.

    Raises:
        CommandFailedError: one has failed; the others have been stopped.
        Interrupted: this process was asked to stop; they have stopped.
    """
    at_once = min(len(commands), at_once or processors())
    waiting, running = list(commands.items()), dict[str, subprocess.Popen[str]]()
    lines: SimpleQueue[tuple[str, str]] = SimpleQueue()
    last = dict.fromkeys(commands, "it printed nothing")
    width = max(map(len, commands))
    how = signal.SIGTERM
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name, arguments = waiting.pop(0)
                running[name] = _started(arguments, max(1, processors() // at_once))
                reader = threading.Thread(target=_read, args=(name, running[name], lines))
                reader.daemon = True
                reader.start()
            name, line = lines.get()
            if line:
                last[name] = line.strip() or last[name]
                if shown(line):
                    print(f"{name:>{width}} | {line.rstrip()}", flush=True)
                continue
            status = running[name].wait()
            del running[name]
            if status:
                raise CommandFailedError(name, status, last[name])
    except Interrupted as stop:
        how = signal.Signals(stop.number)
        raise
    finally:
        _end(running.values(), how)


def _started(arguments: Sequence[str], threads: int) -> subprocess.Popen[str]:
    own = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),  # imports as here
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        env=os.environ | own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,  # out of reach of the keyboard: interrupted once, from here
        text=True,
        errors="replace",
    )


def _read(name: str, process: subprocess.Popen[str], lines: SimpleQueue[tuple[str, str]]) -> None:
    """Hand on the lines that a command prints, and an empty one at its end."""
    assert process.stdout is not None  # a pipe, as asked for
    with process.stdout:
        for line in process.stdout:
            lines.put((name, line))
    lines.put((name, ""))


def _end(processes: Collection[subprocess.Popen[str]], how: signal.Signals) -> None:
    """End what is still running: by a signal, then by force."""
    for process in processes:
        process.send_signal(how)
    last = time.monotonic() + GRACE
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, last - time.monotonic()))
    for process in processes:
        process.kill()
        process.wait()
