"""A list of candidates and their losses: a file that grows line by line and can be resumed.

The first line is ``# `` and a JSON object that says which list it is, the second names the columns.
Each further line holds the blocks that a candidate keeps, its loss, and the loss's standard error
over the calibration samples.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from tinyfusion.errors import InputError
from tinyfusion.files import publish
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.metrics.prefix_tree import Kept
from tinyfusion.progress import Progress
from tinyfusion.ranks import is_first_rank

log = logging.getLogger(__name__)

LIST_FILE = "candidates.csv"
COLUMNS = "kept,loss,loss_stderr"
SECONDS_PER_LINE = 60

SEGMENT = 512
"""Number of candidates that are evaluated together. A killed run is resumed at the start of a
segment, so that the same blocks run in the same batches and give the same bytes."""


def evaluate(
    kept_sets: Sequence[Kept], scores: CandidateScores, head: Mapping[str, Any], folder: Path
) -> tuple[list[float], float | None]:
    """Losses of all candidates, streamed to ``candidates.csv.part``, which is renamed at the end.

    What a killed run left there is not computed again. All ranks compute; the first one writes.

    Args:
        kept_sets: the candidates.
        scores: what gives their losses.
        head: which list it is, as plain data; written into its first line.
        folder: where the file goes.

    Returns:
        The losses, some of which may not be finite, and the speed in candidates per second
        (``None`` if there was nothing left to compute).

    Raises:
        InputError: the folder holds another list, or one that was altered.
    """
    path = folder / LIST_FILE
    if path.is_file():
        log.info("prune: taking the losses in %s", path)
        return read_losses(path, kept_sets, head), None
    part = path.with_name(f"{LIST_FILE}.part")
    losses, ends = _read(part, kept_sets, head) if part.is_file() else ([], [0])
    done = len(losses) // SEGMENT * SEGMENT
    del losses[done:]
    if done:
        log.info("prune: resuming after %s candidates in %s", f"{done:,}", part)
    began = time.monotonic()
    progress = Progress("prune", len(kept_sets), done, unit="candidates", seconds=SECONDS_PER_LINE)
    writes = is_first_rank()
    with _open(part, ends[done], head) if writes else nullcontext() as file:
        for first in range(done, len(kept_sets), SEGMENT):
            segment = kept_sets[first : first + SEGMENT]
            for kept, (loss, stderr) in zip(segment, scores.losses(segment), strict=True):
                # Nine digits tell float32 numbers apart; what is decided on is what is written.
                figures = f"{loss:.9g},{stderr:.9g}"
                losses.append(float(figures.split(",")[0]))
                if file is not None:
                    file.write(f"{_blocks(kept)},{figures}\n".encode())
                    file.flush()
                progress(1)
    if writes:
        publish(part, path)
    made = len(losses) - done
    return losses, made / max(time.monotonic() - began, 1e-9) if made else None


def read_losses(path: Path, kept_sets: Sequence[Kept], head: Mapping[str, Any]) -> list[float]:
    """Losses of a finished list.

    Args:
        path: the file.
        kept_sets: the candidates that it must hold, in this order.
        head: what its first line must say.

    Raises:
        InputError: the file is missing, unfinished or altered, or holds another list.
    """
    if not path.is_file():
        raise InputError(f"candidates file {str(path)!r} does not exist")
    losses, ends = _read(path, kept_sets, head)
    if len(losses) < len(kept_sets):
        raise InputError(
            f"candidates file {str(path)!r} ends early, after {len(losses):,} of "
            f"{len(kept_sets):,} candidates; remove it, and all are evaluated again"
        )
    if ends[-1] != path.stat().st_size:
        raise InputError(
            f"candidates file {str(path)!r} has more lines after its {len(losses):,} candidates"
        )
    return losses


def _read(
    path: Path, kept_sets: Sequence[Kept], head: Mapping[str, Any]
) -> tuple[list[float], list[int]]:
    """Losses in the complete lines of a file, and where the first begins and each one ends."""
    content, start = path.read_bytes(), _first_lines(head)
    if not content.startswith(start):
        if start.startswith(content):
            return [], [0]  # Killed before its first candidate.
        _refuse_head(path, content, head)
    losses: list[float] = []
    ends = [len(start)]
    # What follows the last newline is not a complete line.
    for line in content[len(start) :].split(b"\n")[:-1]:
        number = len(losses)
        wanted = _blocks(kept_sets[number]) if number < len(kept_sets) else "the end of the file"
        blocks, _, figures = line.decode(errors="replace").partition(",")
        try:
            loss, _ = map(float, figures.split(","))
        except ValueError:
            loss = None
        if blocks != wanted or loss is None:
            raise InputError(
                f"candidates file {str(path)!r}, line {number + 3}: found "
                f"{line[:80].decode(errors='replace')!r}, expected {wanted}, then a loss and its "
                "standard error"
            )
        losses.append(loss)
        ends.append(ends[-1] + len(line) + 1)
    return losses, ends


def _refuse_head(path: Path, content: bytes, head: Mapping[str, Any]) -> None:
    try:
        found = json.loads(content.partition(b"\n")[0].removeprefix(b"# "))
        differs = next(key for key in head if found.get(key) != head[key])
    except (ValueError, AttributeError, StopIteration):
        raise InputError(
            f"candidates file {str(path)!r} is not a list of candidates: it must start with "
            f"'# {{...}}' and {COLUMNS!r}"
        ) from None
    raise InputError(
        f"candidates file {str(path)!r} is of another run: {differs}={found.get(differs)} there, "
        f"{differs}={head[differs]} here"
    )


def _open(part: Path, end: int, head: Mapping[str, Any]) -> BinaryIO:
    """The growing file, truncated at ``end``; with its first lines if that is 0."""
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    file = open(part, "r+b")
    file.truncate(end)
    file.seek(end)
    if not end:
        file.write(_first_lines(head))
    return file


def _first_lines(head: Mapping[str, Any]) -> bytes:
    return f"# {json.dumps(dict(head))}\n{COLUMNS}\n".encode()


def _blocks(kept: Kept) -> str:
    return " ".join(map(str, kept))
