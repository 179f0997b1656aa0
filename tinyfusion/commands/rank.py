"""``python -m tinyfusion.commands.rank REPORT``: one rank of a run; started by `launch`."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from omegaconf import OmegaConf

from tinyfusion.commands.execute import work
from tinyfusion.errors import REPORTED, InputError
from tinyfusion.interrupts import Interrupted, handled
from tinyfusion.runtime.launch import REFUSED
from tinyfusion.runtime.streams import patient_streams
from tinyfusion.settings.check import check


def main(report: int) -> int:
    """Read the task from the standard input and carry it out.

    Args:
        report: number of the open file that takes what the user can mend.

    Returns:
        Exit status, as of the command line.
    """
    with patient_streams(), handled():
        return _work(report)


def _work(report: int) -> int:
    task = json.loads(_first_line())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(check(OmegaConf.create(task["config"])), Path(task["folder"]))
    except REPORTED as error:
        kind = next(kind.__name__ for kind in REPORTED if isinstance(error, kind))
        # Short enough for the pipe, which nobody reads before this process has ended.
        line = json.dumps({"kind": kind, "message": str(error)[:8000]}) + "\n"
        os.write(report, line.encode())
        return REFUSED if isinstance(error, InputError) else 1
    except Interrupted as stop:
        return stop.status
    return 0


def _first_line() -> bytes:
    """The first line of the standard input, with nothing read ahead."""
    # Not through sys.stdin, whose lock a thread may not hold when the interpreter ends.
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            raise EOFError("the task did not arrive")
        line += piece
    return line


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: its end of the pipe closes."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1])))
