"""Starting the ranks of a run, one process per device, and waiting for all of them.

Not left to Lightning, whose launcher runs the process's own command line again: inside a sweep
that would be the whole sweep, and the folder would be another one. Nor to torch's elastic launcher,
which leaves its ranks behind when it is killed and has no place for a refusal of one line.

A rank (`tinyfusion.commands.rank`) is given its task on its standard input, which then stays open:
when the process that started it is killed, the input ends and so does the rank. What a user can
mend comes back as one line of JSON through a pipe, and is raised here as if it had happened here.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

from tinyfusion.errors import DiskError, InputError, RanksFailedError, TrainingDivergedError
from tinyfusion.interrupts import Interrupted
from tinyfusion.processors import processors
from tinyfusion.text import shell_word

REFUSED = 2
"""Exit status of a rank that has refused its input."""

GRACE = 20.0
"""Seconds that ranks are given to end by themselves when another one has failed."""

SHORT_GRACE = 1.0
"""The same when it is known why: one was killed, or has refused something."""


@dataclass
class _Rank:
    """One rank.

    Attributes:
        number: its number among all ranks.
        process: its process.
        report: where its report, if it makes one, can be read when it has ended.
        failed_at: when it was seen to have ended badly by itself; ``None`` if it has not.
    """

    number: int
    process: subprocess.Popen[str]
    task: IO[str]
    """Its standard input; the rank ends when it closes."""
    report: TextIO
    failed_at: float | None = None


def launch(
    module: str, task: str, count: int, num_nodes: int, folder: Path, lock: TextIO | None
) -> None:
    """Carry out a task in one process for each device of this machine and wait for the end.

    Args:
        module: dotted name of what a rank runs; it is given the number of an open file for its
            report, and the task as the first line of its standard input.
        task: one line that says what to do.
        count: ranks on this machine.
        num_nodes: number of machines, of which each runs this.
        folder: the run's folder, for messages.
        lock: file that holds the folder; the ranks keep it as well, so that it stays locked as
            long as any of them lives.

    Raises:
        InputError: unknown other machines, or what a rank refused.
        TrainingDivergedError: ten steps in a row had no finite loss or gradient.
        DiskError: a file can't be written or read.
        RanksFailedError: a rank ended otherwise.
        Interrupted: this process was asked to stop; the ranks have stopped.
    """
    shared = _meeting_point(num_nodes, count)
    first = int(shared["NODE_RANK"]) * count
    world = num_nodes * count
    ranks: list[_Rank] = []
    try:
        for local in range(count):
            own = {"RANK": str(first + local), "LOCAL_RANK": str(local), "WORLD_SIZE": str(world)}
            environment = _environment(count) | shared | own
            ranks.append(_start(module, first + local, environment, task, lock))
        _wait(ranks)
    except Interrupted as stop:
        # They are out of reach of the keyboard, so that each is interrupted once; to the end of a
        # step it may be long, and the keyboard's next interrupt ends them by ending this process.
        _end(ranks, signal.Signals(stop.number), patience=None)
        raise
    finally:
        _end(ranks, signal.SIGKILL)
    _raise_report(ranks, world, folder)


def _meeting_point(num_nodes: int, count: int) -> dict[str, str]:
    """Where the ranks find each other, and which machine of them this is."""
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    if num_nodes > 1:
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise InputError(
                f"trainer.num_nodes={num_nodes}: {', '.join(missing)} not set; start the command "
                f"on every machine with MASTER_ADDR, MASTER_PORT and NODE_RANK=0..{num_nodes - 1} "
                f"in the environment, or by torchrun or srun with {count} process(es) each"
            )
        number = os.environ["NODE_RANK"]
        if not (number.isascii() and number.isdigit()) or int(number) >= num_nodes:
            raise InputError(f"NODE_RANK={number} must be between 0 and {num_nodes - 1}")
        return {name: os.environ[name] for name in names}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}


def _environment(count: int) -> dict[str, str]:
    """Environment of a rank: imports as here, and a share of the processors."""
    threads = max(1, processors() // count)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    # A rank that is gone is reported once, not by what torch's C++ says of its connections.
    quiet = {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    # Of a torchrun whose variables are left over, torch would look for its store.
    own = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC_")}
    return {**quiet, **own, "PYTHONPATH": path}


def _start(
    module: str, number: int, environment: dict[str, str], task: str, lock: TextIO | None
) -> _Rank:
    reading, writing = os.pipe()
    kept = [writing, *([] if lock is None else [lock.fileno()])]
    quiet = number > 0
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(writing)],
        env=environment | ({"PYTHONWARNINGS": "ignore"} if quiet else {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL if quiet else None,
        pass_fds=kept,
        process_group=0,
        text=True,
    )
    os.close(writing)
    assert process.stdin is not None  # a pipe, as asked for
    rank = _Rank(number, process, process.stdin, os.fdopen(reading))
    with suppress(BrokenPipeError):  # it has died already, which is noticed below
        rank.task.write(task + "\n")
        rank.task.flush()
    return rank


def _wait(ranks: Sequence[_Rank]) -> None:
    """Wait until all have ended, or until one has failed and the others had time to."""
    deadline = None
    while True:
        codes = [rank.process.poll() for rank in ranks]
        now = time.monotonic()
        for rank, code in zip(ranks, codes, strict=True):
            if code and rank.failed_at is None:
                rank.failed_at = now
                grace = SHORT_GRACE if code < 0 or code == REFUSED else GRACE
                deadline = min(deadline or now + grace, now + grace)
        if None not in codes or (deadline is not None and now > deadline):
            return
        time.sleep(0.05)


def _end(ranks: Sequence[_Rank], how: signal.Signals, patience: float | None = GRACE) -> None:
    """End those that are still there: by a signal, then, after so many seconds, by force."""
    left = [rank for rank in ranks if rank.process.poll() is None]
    for rank in left:
        rank.process.send_signal(how)
    deadline = None if patience is None else time.monotonic() + patience
    try:
        for rank in left:
            with suppress(subprocess.TimeoutExpired):
                rank.process.wait(deadline and max(0.0, deadline - time.monotonic()))
    finally:  # also if the user has lost patience
        for rank in left:
            rank.process.kill()
            rank.process.wait()
    for rank in ranks:
        with suppress(BrokenPipeError):
            rank.task.close()


def _raise_report(ranks: Sequence[_Rank], world: int, folder: Path) -> None:
    """Raise what went wrong: best what a rank reported, else that one ended badly."""
    reports = []
    bad = [rank for rank in ranks if rank.process.returncode]
    followed = []  # those that failed because another one had
    for rank in ranks:
        with rank.report:
            own = [json.loads(line) for line in rank.report]
        if any(report["kind"] == RanksFailedError.__name__ for report in own):
            followed.append(rank)
        reports += own
    for kind in (InputError, TrainingDivergedError, DiskError):
        for report in reports:
            if report["kind"] == kind.__name__:
                raise kind(report["message"])
    if not bad:
        return
    # The first to fail; neither one that was ended from here nor one that lost touch with it.
    rank = min(bad, key=lambda rank: (rank in followed, rank.failed_at or math.inf))
    code = rank.process.returncode
    how = f"with exit status {code}" if code > 0 else f"by {signal.Signals(-code).name}"
    raise RanksFailedError(
        f"rank {rank.number} of {world} ended {how}; what it printed stands above; resume with "
        f"{shell_word('resume', folder)}"
    )
