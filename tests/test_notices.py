"""What was skipped is said at once and counted at the end."""

from __future__ import annotations

import logging

import pytest

from tinyfusion.notices import SHOWN, Event, alike, captured, notice, repeated, replay, tally

LEFT_OUT = "image(s) were left out"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """The lines that were said so far."""
    monkeypatch.setattr(logging.getLogger("tinyfusion"), "propagate", True)
    return lambda: [line for message in caplog.messages for line in message.splitlines()]


def test_facts_are_said_once_and_events_are_added_up(said) -> None:
    notice("RANK=1 is ignored")  # before the log is open
    with repeated("run"):
        for _ in range(2):
            notice("RANK=1 is ignored")
            tally(LEFT_OUT, 600, "a.png")
        assert said() == [
            "note: RANK=1 is ignored",
            f"note: 600 {LEFT_OUT}: a.png",
            f"note: 600 {LEFT_OUT}: a.png",
        ]
    end = ["run: in all, noted on the way:", "  RANK=1 is ignored", f"  1,200 {LEFT_OUT}"]
    assert said()[3:] == end
    with repeated("sample"):
        pass
    assert said()[3:] == end


def test_an_error_does_not_lose_them_and_many_are_only_counted(said) -> None:
    with pytest.raises(KeyError), repeated("run"):
        for number in range(SHOWN + 5):
            tally(LEFT_OUT, detail=f"{number}.png")
        raise KeyError
    assert len(said()) == SHOWN + 2 and said()[SHOWN - 1].endswith("; further ones are counted")
    assert said()[-1] == f"  {SHOWN + 5} {LEFT_OUT}"


def test_what_is_only_said_is_not_repeated(said) -> None:
    with repeated("run"):
        notice("a default was chosen", again=False)
    assert said() == ["note: a default was chosen"]


def test_events_of_a_worker_are_tallied_where_they_are_replayed(said) -> None:
    with repeated("run"):
        with captured() as events:
            tally(LEFT_OUT, 2)
        assert not said() and [tuple(event) for event in events] == [(LEFT_OUT, 2, "", "")]
        replay([*events, Event(LEFT_OUT, 3, "b.png", "")])
    assert said()[-1] == f"  5 {LEFT_OUT}"


def test_further_ranks_say_their_own_events_alone(said, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with repeated("run"):
        notice("seen by all ranks")
        tally(LEFT_OUT)
    assert not said()
    assert capsys.readouterr().err.splitlines() == [
        f"rank 1: note: 1 {LEFT_OUT}; further ones are counted",
        "rank 1: run: in all, noted on the way:",
        f"  1 {LEFT_OUT}",
    ]


def test_what_happens_to_the_same_thing_again_counts_once(said) -> None:
    with repeated("run"):
        for name in ("a.png", "a.png", "b\udcff.png"):
            tally(LEFT_OUT, detail=name, item=name)
    assert said() == [
        f"note: 1 {LEFT_OUT}: a.png",
        f"note: 1 {LEFT_OUT}: b\\udcff.png",
        "run: in all, noted on the way:",
        f"  2 {LEFT_OUT}",
    ]


def test_what_all_ranks_notice_is_said_by_the_first(said, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with repeated("run"):
            with alike():
                tally(LEFT_OUT, item="a.png")
            tally(LEFT_OUT, item="a.png")
    assert [line for line in said() if line.startswith("  ")] == [f"  1 {LEFT_OUT}"]
    assert not capsys.readouterr().err
