"""Seconds that each unit of a network takes, measured where it is to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tinyfusion.backbones.branches import Branch
from tinyfusion.backbones.contract import Backbone, evaluating, run_plain
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.metrics.benchmark import device_name
from tinyfusion.states import States
from tinyfusion.units import Unit


@dataclass(frozen=True)
class Setting:
    """Where and how latency is measured; figures of different settings can't be compared.

    Attributes:
        device: name of the device, with the number of threads of a CPU.
        batch_size: samples per forward.
        precision: as a trainer calls it, such as ``"bf16-mixed"``.
        compiled: whether blocks are compiled.
    """

    device: str
    batch_size: int
    precision: str
    compiled: bool


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of one forward and of its units.

    Attributes:
        setting: where and how it was measured.
        whole: seconds of one forward.
        seconds: seconds of each unit by name, median of several runs.
    """

    setting: Setting
    whole: float
    seconds: dict[str, float]

    def of(self, units: Sequence[Unit]) -> tuple[float, ...]:
        """Seconds of some units.

        Raises:
            InputError: one that was not measured.
        """
        missing = [unit.name for unit in units if unit.name not in self.seconds]
        if missing:
            raise InputError(
                f"budget.latency: the table has no {missing[0]}; it is of another kind of "
                "units, or on another model"
            )
        return tuple(self.seconds[unit.name] for unit in units)

    def check(self, here: Setting, path: Path | str) -> None:
        """Refuse figures of another device, batch, precision or compile setting.

        Raises:
            InputError: they are.
        """
        for key, there in asdict(self.setting).items():
            if there != getattr(here, key):
                raise InputError(
                    f"latency table {str(path)!r} was measured with {key}={there}, but this run "
                    f"has {key}={getattr(here, key)}; measure it here: leave budget.table out"
                )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path | str) -> LatencyTable:
        """Read a file of `save`.

        Raises:
            InputError: it is none.
        """
        values = read_json(path, "latency table")
        try:
            setting = Setting(**values["setting"])
            seconds = {str(k): float(v) for k, v in values["seconds"].items()}
            return cls(setting, float(values["whole"]), seconds)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"latency table {str(path)!r} can't be read: {error}") from None


def measure_latency(
    net: Backbone,
    units: Sequence[Unit],
    setting: Setting,
    dtype: torch.dtype | None = None,
    rounds: int = 7,
    repeats: int = 3,
) -> LatencyTable:
    """Time a sampling forward of a batch, and each unit on the states that it is given there.

    Args:
        net: the network, on its device, compiled if ``setting`` says so.
        units: what is timed one by one.
        setting: how it is measured, see `setting_of`.
        dtype: what matrix products are computed in, by autocast; ``None`` for the network's own.
        rounds: timed runs, of which the median is taken.
        repeats: runs of a unit between two looks at the clock.
    """
    device = next(net.parameters()).device
    inputs = net.example_inputs(setting.batch_size, device)
    seconds: list[list[float]] = [[] for _ in units]

    def timed(number: int, unit: Branch, states: States, condition: Any) -> States:
        out = run_plain(number, unit, states, condition)
        taken = _seconds(device, lambda: unit(states, condition), repeats)
        seconds[number].append(taken)
        return out

    cast = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    run_units = net.run_units(units, timed)
    with torch.no_grad(), evaluating(net), cast:
        for _ in range(2):
            net(*inputs)
        wholes = []
        for _ in range(rounds):
            wholes.append(_seconds(device, lambda: net(*inputs), 1))
            net(*inputs, run_block=run_units)
    found = {unit.name: median(times) for unit, times in zip(units, seconds, strict=True)}
    return LatencyTable(setting, median(wholes), found)


def setting_of(net: Backbone, batch_size: int, precision: str, compiled: bool) -> Setting:
    """How the latency of a network would be measured where it is.

    Args:
        net: the network.
        batch_size: samples per forward.
        precision: as a trainer calls it.
        compiled: whether its blocks are compiled.
    """
    device = next(net.parameters()).device
    name = device_name(device)
    if device.type == "cpu":
        name = f"{name}, {torch.get_num_threads()} thread(s)"
    return Setting(name, batch_size, precision, compiled)


def _seconds(device: torch.device, run: Callable[[], object], repeats: int) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    wait()
    return (time.perf_counter() - began) / repeats
