"""What was skipped, replaced or not used: said at once, and with counts once more at the end.

`notice` is for a fact, such as an argument in a file that is not used; `tally` for what happens
again and again, such as a sample that is left out. Both are said when they come up, and the end
of the command (`repeated`) says all of them together. What is noticed before a command's log is
open is kept for it.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tinyfusion.ranks import is_first_rank, rank

log = logging.getLogger(__name__)

SHOWN = 5
"""So many events of a kind are said one by one; further ones are only counted."""


class Event(NamedTuple):
    """One event, as `captured` hands it on: see `tally`."""

    kind: str
    number: int
    detail: str
    item: str


_lock = threading.Lock()
_facts: dict[str, bool] = {}
_counts: dict[str, int] = {}
_said: dict[str, int] = {}
_items: set[int] = set()
_capturing: list[Event] | None = None


def notice(text: str, again: bool = True) -> None:
    """Say a fact, once however often it is noticed, and again at the end of the command.

    Of several ranks only the first one says it: all notice the same.

    Args:
        text: a whole message with what it is about, such as a key or file, and its count if there
            is one: ``"data.root='x': left out 3 hidden folder(s)"``.
        again: at the end as well, as is due to what was skipped, replaced or not used.
    """
    with _lock:
        known = text in _facts
        _facts[text] = again
    if not known and is_first_rank():
        _say(f"note: {text}")


def tally(kind: str, count: int = 1, detail: str = "", item: str = "") -> None:
    """Count an event; the first ones are said at once, all are counted at the end of the command.

    Every rank says its own; see `alike` for what all ranks notice.

    Args:
        kind: what happened, to be read after a number: ``"image(s) that can't be decoded were
            left out"``. Equal kinds are added up.
        count: how many at once.
        detail: which one and why; not repeated at the end.
        item: what it happened to, such as a file that is read again and again; it counts once.
    """
    event = Event(kind, count, detail, item)
    if _capturing is not None:
        _capturing.append(event)
        return
    with _lock:
        if item:
            if (known := _known(event)) in _items:
                return
            _items.add(known)
        _counts[kind] = _counts.get(kind, 0) + count
        said = _said[kind] = _said.get(kind, 0) + 1
    shown = SHOWN if is_first_rank() else 1
    if said <= shown:
        more = "; further ones are counted" if said == shown else ""
        _say(f"note: {_counted(event)}{more}")


@contextmanager
def captured() -> Iterator[list[Event]]:
    """Keep events back, for another process (or a file) to `replay` them.

    Yields:
        the events, in order; filled while the context is open.
    """
    global _capturing
    before, _capturing = _capturing, []
    try:
        yield _capturing
    finally:
        _capturing = before


def replay(events: Iterable[Event]) -> None:
    """Tally events that were `captured` elsewhere."""
    for event in events:
        tally(*event)


@contextmanager
def alike() -> Iterator[None]:
    """Tally what all ranks notice alike, such as what they read at the start, on the first only.

    The others take note of the items, which then count nowhere else.
    """
    try:
        with captured() as events:
            yield
    finally:
        if is_first_rank():
            replay(events)
        else:
            with _lock:
                _items.update(_known(event) for event in events)


@contextmanager
def repeated(command: str) -> Iterator[None]:
    """Say all that was noticed once more when the context ends, also by an error, and forget it.

    Args:
        command: who speaks.
    """
    try:
        yield
    finally:
        lines = [f"{count:,} {kind}" for kind, count in _counts.items()]
        if is_first_rank():
            lines = [*(text for text, again in _facts.items() if again), *lines]
        if lines:
            _say("\n  ".join([f"{command}: in all, noted on the way:", *lines]))
        forget()


def forget() -> None:
    """Forget all that was noticed."""
    with _lock:
        for book in (_facts, _counts, _said, _items):
            book.clear()


def _known(event: Event) -> int:
    # A number, as there may be a million of them.
    return hash((event.kind, event.item))


def _counted(event: Event) -> str:
    text = f"{event.number:,} {event.kind}"
    return f"{text}: {event.detail}" if event.detail else text


def _say(text: str) -> None:
    # Names of files may hold bytes that are no text.
    text = text.encode("utf-8", "backslashreplace").decode()
    if is_first_rank():
        log.warning("%s", text)
    else:  # whose log goes nowhere
        print(f"rank {rank()}: {text}", file=sys.stderr)
