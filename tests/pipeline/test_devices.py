"""Processes from the trainer's settings."""

from __future__ import annotations

import os

import pytest

from tinyfusion.errors import InputError
from tinyfusion.pipeline.devices import check_count, loader_processes
from tinyfusion.training.settings import TrainerSettings


@pytest.mark.parametrize(("asked", "processors", "started"), [(8, 2, 2), (1, 4, 1), (0, 4, 0)])
def test_no_more_loaders_than_processors(asked, processors, started, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    assert loader_processes(TrainerSettings(num_workers=asked)) == started
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert loader_processes(TrainerSettings(num_workers=asked)) == started


def test_no_more_processes_than_a_machine_can_bear(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    check_count("workers", 16)
    with pytest.raises(InputError, match=r"^workers=17: .* 2 processor.*at most 16$"):
        check_count("workers", 17)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    check_count("workers", 128)
