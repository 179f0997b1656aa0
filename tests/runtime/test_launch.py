"""Starting ranks and waiting for them: who is blamed, and how soon the others are ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyfusion.errors import InputError, RanksFailedError, TrainingDivergedError
from tinyfusion.runtime.launch import launch

# Without imports of this package, so that a rank starts at once.
RANK = """
import json, os, signal, sys, time
rank, report = int(os.environ["RANK"]), int(sys.argv[1])
task = sys.stdin.readline().split()[rank]
def tell(kind):
    os.write(report, (json.dumps({"kind": kind, "message": f"said by {rank}"}) + chr(10)).encode())
if task == "works":
    open(f"pid{rank}", "w").write(str(os.getpid()))
    time.sleep(600)
elif task == "killed":
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
elif task == "refuses":
    tell("InputError"), sys.exit(2)
elif task == "diverges":
    tell("TrainingDivergedError"), sys.exit(1)
elif task == "follows":  # another one is gone, as it finds out later
    time.sleep(0.6)
    tell("RanksFailedError"), sys.exit(1)
elif task == "broken":
    time.sleep(0.1)
    sys.exit(5)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch) -> Callable[..., float]:
    """``start("works", "killed")``: seconds until the ranks with these tasks have ended."""
    (tmp_path / "some_rank.py").write_text(RANK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def run(*tasks: str) -> float:
        began = time.monotonic()
        launch("some_rank", " ".join(tasks), len(tasks), 1, tmp_path, None)
        return time.monotonic() - began

    return run


def test_ranks_that_do_their_work(start) -> None:
    start("done", "done")


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        # While the others are busy and would not notice for ten minutes.
        (("works", "killed", "works"), RanksFailedError, "rank 1 of 3 ended by SIGKILL; .* resume"),
        (("works", "refuses"), InputError, "^said by 1$"),
        (("follows", "killed"), RanksFailedError, "rank 1 of 2 ended by SIGKILL"),
        (("killed", "follows"), RanksFailedError, "rank 0 of 2 ended by SIGKILL"),
        (("follows", "broken"), RanksFailedError, "rank 1 of 2 ended with exit status 5"),
        (("follows", "diverges"), TrainingDivergedError, "^said by 1$"),
        (("broken", "refuses"), InputError, "^said by 1$"),
    ],
)
def test_a_failure_is_noticed_at_once_and_the_right_rank_is_named(
    start, tmp_path, tasks, error, message
) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=message):
        start(*tasks)
    assert time.monotonic() - began < 8
    for file in tmp_path.glob("pid*"):
        assert not Path("/proc", file.read_text()).exists()
