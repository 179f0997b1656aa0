"""Printing never ends a run: streams that are ASCII, full, closed or not read any more."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyfusion.cli import main
from tinyfusion.figures.table import Column
from tinyfusion.figures.terminal_table import print_table
from tinyfusion.runtime.streams import patient_streams

LOST = "standard output can't be written: No space left on device; make room"


def printing_to(stream: io.TextIOBase, work: Callable[[], int], monkeypatch) -> int:
    """What ``work`` returns with another standard output."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        return work()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_an_encoding_lacks_is_replaced(monkeypatch, encoding) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)

    def work() -> int:
        with patient_streams():
            print("M\u00fcller \u2026 \u4e2d \udcff")
            print_table([{"a": (1.0, 2.0), "b": "\u4e2d"}], {"a": Column("FID"), "b": Column("n")})
        return 0

    printing_to(stream, work, monkeypatch)
    text = written.getvalue().decode(encoding)
    assert "ller" in text and "FID" in text
    assert ("\u4e2d" in text) == (encoding == "utf-8") and ("?" in text)
    assert ("1.0 \u00b1 2.0" if encoding != "ascii" else "1.0 ? 2.0") in text


def test_what_is_printed_is_the_result(monkeypatch, capsys) -> None:
    for command in (["--version"], ["--help"], ["inspect", "digits"], ["prune", "--cfg", "job"]):
        with open("/dev/full", "w") as full:
            assert printing_to(full, lambda: main(command), monkeypatch) == 1  # noqa: B023
        assert capsys.readouterr().err == f"tinyfusion: error: {LOST}\n"


def test_nobody_reads_any_more(monkeypatch, capsys) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        assert printing_to(pipe, lambda: main(["--help"]), monkeypatch) == 0
    assert capsys.readouterr().err == ""


def test_closed_streams_keep_their_numbers(tmp_path: Path) -> None:
    """A file of the run would get the number, and what prints past Python would write into it."""

    def work() -> None:
        os.close(1), os.close(2)
        sys.stdout = sys.stderr = None
        with patient_streams(), open(tmp_path / "file", "w") as file:
            assert not sys.stdout.isatty()
            os.write(1, b"from C")
            print("into nothing")
            file.write(str(file.fileno() > 2))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert (tmp_path / "file").read_text() == "True"
