"""What long work on many images says: how far, how fast, how long still."""

from __future__ import annotations

import pytest

from tinyfusion import progress
from tinyfusion.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found)
    return found


@pytest.fixture
def lines(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(progress.log, "info", lambda text, *values: said.append(text % values))
    return said


def test_lines_come_now_and_then_and_at_the_end(clock, lines) -> None:
    with Progress("sample", 1000) as shown:
        clock.now += 60  # starting says nothing about the speed
        shown(100)
        for _ in range(4):
            clock.now += 5
            shown(50)
        shown.reach(1000)
    assert lines == [
        "sample: 200 of 1,000 images (20.0 %), 10.0 images/s, 1 min 20 s left",
        "sample: 300 of 1,000 images (30.0 %), 10.0 images/s, 1 min 10 s left",
        "sample: 1,000 of 1,000 images (100.0 %), 45.0 images/s, 0 s left",
    ]


def test_what_was_there_before_does_not_count_as_fast(clock, lines) -> None:
    with Progress("sample", 1000, done=900) as shown:
        clock.now += 1
        shown(10)
        clock.now += 20
        shown(40)
    assert lines == ["sample: 950 of 1,000 images (95.0 %), 2.0 images/s, 25 s left"]


def test_hours_are_named(clock, lines) -> None:
    with Progress("sample", 50_000) as shown:
        shown(1)
        clock.now += 10
        shown(20)
    assert lines[-1].endswith("2.0 images/s, 6 h 56 min left")


def test_a_bar_instead_of_lines(clock, lines, capsys) -> None:
    with Progress("sample", 100, bar=True) as shown:
        clock.now += 1
        shown(10)
        clock.now += 1
        shown(20)
        task = shown._bar.tasks[0]
        assert task.completed == 30 and task.total == 100
        assert task.fields["text"] == "30 of 100 images (30.0 %), 20.0 images/s, 4 s left"
    assert lines == []
