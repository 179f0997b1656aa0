"""Processes from the trainer's settings."""

from __future__ import annotations

import os

import pytest

from tinyfusion.pipeline.devices import loader_processes
from tinyfusion.training.settings import TrainerSettings


@pytest.mark.parametrize(("asked", "processors", "started"), [(8, 2, 2), (1, 4, 1), (0, 4, 0)])
def test_no_more_loaders_than_processors(asked, processors, started, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    assert loader_processes(TrainerSettings(num_workers=asked)) == started
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert loader_processes(TrainerSettings(num_workers=asked)) == started
