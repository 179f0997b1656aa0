"""Command lines side by side."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tinyfusion.interrupts import Interrupted, handled
from tinyfusion.studies import together
from tinyfusion.studies.together import CommandFailedError, run_together


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in whose stead of the package a script called ``tinyfusion`` is run."""
    package = tmp_path / "tinyfusion"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys\nexec(sys.argv[1])\n", encoding="utf-8")
    entry = "def end_with_parent(): open('ends with its parent', 'w').close()"
    (package / "interrupts.py").write_text(entry, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


FIFO_READ = "open({0!r}).read()"
"""Waits until somebody has opened the pipe to write, and closed it."""


def test_lines_are_whole_and_say_whose_they_are(scripts: Path, capfd) -> None:
    halves = "import sys\nfor i in range(200): sys.stdout.write(f'{i} a'); print('b')"
    run_together({"one": [halves], "another": [halves]})
    lines = capfd.readouterr().out.splitlines()
    for name in ("    one", "another"):
        own = [line for line in lines if line.startswith(f"{name} | ")]
        assert own == [f"{name} | {i} ab" for i in range(200)]
    assert len(lines) == 400


def test_empty_lines_are_not_the_end_and_errors_are_among_the_lines(scripts: Path, capfd) -> None:
    said = "import sys; print(); print('out', flush=True); print('err', file=sys.stderr)"
    run_together({"a": [said]}, shown=lambda line: "out" not in line)
    assert [line.strip() for line in capfd.readouterr().out.splitlines()] == ["a |", "a | err"]


def test_as_many_at_once_as_asked_for(scripts: Path, tmp_path: Path, capfd) -> None:
    os.mkfifo(tmp_path / "fifo")
    pipe = str(tmp_path / "fifo")
    # Each waits for the other, so that both have to run.
    run_together({"reads": [FIFO_READ.format(pipe)], "writes": [f"open({pipe!r}, 'w')"]}, 2)
    (tmp_path / "log").touch()
    entry = f"f = open({str(tmp_path / 'log')!r}, 'a'); f.write('{{0}} begins, '); f.flush()"
    entry += "; f.write('{0} ends; ')"
    run_together({name: [entry.replace("{{0}}", name).replace("{0}", name)] for name in "abc"}, 1)
    written = (tmp_path / "log").read_text()
    assert written == "a begins, a ends; b begins, b ends; c begins, c ends; "


def test_threads_are_shared_out(scripts: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(together, "processors", lambda: 8)
    say = "import os; print(os.environ['OMP_NUM_THREADS'])"
    run_together({name: [say] for name in "abc"})
    assert {line[-1] for line in capfd.readouterr().out.splitlines()} == {"2"}
    run_together({"a": [say]})
    assert capfd.readouterr().out == "a | 8\n"


def test_a_failure_stops_the_others(scripts: Path, tmp_path: Path, capfd) -> None:
    os.mkfifo(tmp_path / "fifo")
    pipe, mark = str(tmp_path / "fifo"), str(tmp_path / "mark")
    waits = (
        "import os; open('pid', 'w').write(str(os.getpid())); "
        f"open({pipe!r}, 'w').close(); " + FIFO_READ.format(str(tmp_path / "never"))
    )
    os.mkfifo(tmp_path / "never")
    fails = FIFO_READ.format(pipe) + "; print('tinyfusion: error: no'); raise SystemExit(2)"
    commands = {"waits": [waits], "fails": [fails], "later": [f"open({mark!r}, 'w')"]}
    with pytest.raises(CommandFailedError) as caught:
        run_together(commands, 2)
    assert caught.value.status == 2
    assert str(caught.value) == (
        "fails failed (exit status 2), the others were stopped: tinyfusion: error: no"
    )
    assert capfd.readouterr().out == "fails | tinyfusion: error: no\n"
    assert not os.path.exists(mark)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert (tmp_path / "ends with its parent").exists()


def test_a_killed_one_is_a_failure(scripts: Path) -> None:
    with pytest.raises(CommandFailedError, match=r"^a failed \(SIGKILL\).*it printed nothing"):
        run_together({"a": ["import os; os.kill(os.getpid(), 9)"]})


def test_an_interruption_stops_all(scripts: Path, tmp_path: Path, capfd) -> None:
    os.mkfifo(tmp_path / "ready")
    ready = str(tmp_path / "ready")
    catches = (
        "import signal, sys\n"
        "def stop(number, frame): open('got', 'w').write(str(number)); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        f"open({ready!r}, 'w').close()\n"
        "signal.pause()"
    )

    def interrupt() -> None:
        with open(ready) as pipe:
            pipe.read()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted) as caught, handled():
        run_together({"a": [catches]})
    assert caught.value.number == signal.SIGINT
    assert (tmp_path / "got").read_text() == str(int(signal.SIGINT))
    assert "Traceback" not in capfd.readouterr().err
