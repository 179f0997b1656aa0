"""What is printed can't end a run: standard output and error that are closed, full or ASCII.

The results of a run lie in its folder; what it prints is a report. So output that can't be written
is dropped, characters that can't be encoded are replaced, and at the end one line says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class PatientStream:
    """A text stream that drops what can't be written and remembers why; else the stream itself.

    Args:
        stream: the stream.

    Attributes:
        failure: the first error; ``None`` while all has been written.
        results: folder that holds what is reported; ``None`` if the report is all there is.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        self.results: Path | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``, or drop it."""
        if self.failure is None:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError:
                coding = self._stream.encoding or "ascii"
                return self.write(text.encode(coding, "replace").decode(coding))
            except OSError as error:
                self._give_up(error)
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        """Write lines, or drop them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is held back, or drop it."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = error
        # What the stream still holds is written once more when Python ends, and would fail again.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def patient_streams() -> Iterator[PatientStream]:
    """Let printing to standard output and error never raise.

    Yields:
        Standard output.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    out, err = PatientStream(sys.stdout), PatientStream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def reader_has_left(error: OSError | None) -> bool:
    """Whether a stream broke because nobody reads it any more, as after ``| head``."""
    return error is not None and error.errno == errno.EPIPE


def _open_closed() -> None:
    """Send streams that this process was started without (``>&-``) nowhere.

    Their numbers have to be taken: the next file that is opened would get them, and whatever
    prints past Python would write into it.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(nowhere, number)
    if nowhere > 2:
        os.close(nowhere)
    else:
        os.set_inheritable(nowhere, True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))
