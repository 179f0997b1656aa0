"""The number of threads that a network is worth."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.pipeline import threads
from tinyfusion.training.settings import TrainerSettings

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_by_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "ALL", 2)
    threads.set_threads(TrainerSettings())
    yield
    torch.set_num_threads(before)


def dit(width: int, size: int = 8) -> DiT:
    return DiT(size, 2, 1, hidden_size=width, depth=2, num_heads=4, num_classes=10)


@pytest.mark.parametrize(
    ("width", "images", "chosen"), [(32, 64, 1), (32, 256, 1), (384, 4, 1), (384, 64, 2)]
)
def test_small_networks_take_one(width: int, images: int, chosen: int, caplog) -> None:
    caplog.set_level(logging.INFO)
    threads.choose_threads(dit(width), TrainerSettings(), CPU, images)
    assert torch.get_num_threads() == chosen
    (line,) = caplog.messages
    assert f"threads: {chosen} of 2, as a block does " in line and f"batch of {images}" in line
    assert ("below 300 M" if chosen == 1 else "at least 300 M") in line


def test_a_later_job_of_a_sweep_is_not_bound_by_an_earlier_one() -> None:
    threads.set_threads(TrainerSettings(threads=1))
    assert torch.get_num_threads() == 1
    threads.set_threads(TrainerSettings())
    assert torch.get_num_threads() == 2
    threads.choose_threads(dit(32), TrainerSettings(), CPU, 8)
    threads.choose_threads(dit(384), TrainerSettings(), CPU, 64)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_the_environment_has_the_last_word(name: str, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(name, "2")
    threads.choose_threads(dit(32), TrainerSettings(), CPU, 8)
    assert torch.get_num_threads() == 2 and not caplog.messages


def test_so_has_the_configuration_and_gpus_are_left_alone(caplog) -> None:
    caplog.set_level(logging.INFO)
    threads.set_threads(TrainerSettings(threads=2))
    threads.choose_threads(dit(32), TrainerSettings(threads=2), CPU, 8)
    threads.choose_threads(dit(32), TrainerSettings(), torch.device("cuda"), 8)
    assert torch.get_num_threads() == 2 and not caplog.messages


def test_a_network_whose_work_can_not_be_counted_keeps_all(monkeypatch) -> None:
    def refuse(net: object) -> int:
        raise RuntimeError("reads values")

    monkeypatch.setattr(threads, "macs", refuse)
    threads.choose_threads(dit(32), TrainerSettings(), CPU, 8)
    assert torch.get_num_threads() == 2
