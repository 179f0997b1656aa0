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
from torch import nn

from tinyfusion.backbones.branches import Branch
from tinyfusion.backbones.contract import Backbone, evaluating, run_plain
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.metrics.benchmark import device_name
from tinyfusion.metrics.speed import parameters
from tinyfusion.states import States
from tinyfusion.units import Unit


@dataclass(frozen=True)
class Setting:
    """Where and how latency is measured; figures of different settings can't be compared.

    Attributes:
        model: which network, in words.
        device: name of the device, with the number of threads of a CPU.
        batch_size: samples per forward.
        precision: as a trainer calls it, such as ``"bf16-mixed"``.
        compiled: whether blocks are compiled.
    """

    model: str
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
        rest: seconds of one forward without its units.
        seconds: seconds of each unit by itself, by name.
    """

    setting: Setting
    whole: float
    rest: float
    seconds: dict[str, float]

    def of(self, units: Sequence[Unit]) -> tuple[float, ...]:
        """Seconds that some units add to a forward.

        A unit that is timed by itself finds its weights in the cache, and leaves out what a block
        does for its branches: times are scaled so that all units of the table together take what
        is between the whole forward and that without units.

        Raises:
            InputError: one that was not measured.
        """
        missing = [unit.name for unit in units if unit.name not in self.seconds]
        if missing:
            raise InputError(
                f"budget.latency: the table has no {missing[0]}; it is of another kind of "
                "units, or on another model"
            )
        scale = max(0.0, self.whole - self.rest) / sum(self.seconds.values())
        return tuple(scale * self.seconds[unit.name] for unit in units)

    def check(self, here: Setting, path: Path | str) -> None:
        """Refuse figures of another device, batch, precision or compile setting.

        Raises:
            InputError: they are.
        """
        for key, there in asdict(self.setting).items():
            if there != getattr(here, key):
                raise InputError(
                    f"latency table {str(path)!r} was measured with {key}={there}, but this run "
                    f"has {key}={getattr(here, key)}; measure anew: leave budget.table out, or "
                    "take another run folder"
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
            return cls(setting, float(values["whole"]), float(values["rest"]), seconds)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                f"{str(path)!r} is no latency table; valid: a latency.json that an earlier run "
                "with budget.latency= wrote in its folder prune/"
            ) from None


def measure_latency(
    net: Backbone,
    units: Sequence[Unit],
    setting: Setting,
    dtype: torch.dtype | None = None,
    rounds: int = 7,
    repeats: int = 3,
    whole: Backbone | None = None,
) -> LatencyTable:
    """Time a sampling forward of a batch, one without units, and each unit by itself.

    Units of one stack, branch and number of parameters count as alike and share their median.

    Args:
        net: the network, on its device, not compiled.
        units: what is timed one by one, on the states that it is given in a forward.
        setting: how it is measured, see `setting_of`.
        dtype: what matrix products are computed in, by autocast; ``None`` for the network's own.
        rounds: timed runs, of which the median is taken.
        repeats: runs of a unit between two looks at the clock.
        whole: the same network compiled, for forwards; ``None`` for ``net``. Units are timed as
            they are: compiled by themselves, they would be other programs than within their block.
    """
    device = next(net.parameters()).device
    whole = net if whole is None else whole
    inputs = net.example_inputs(setting.batch_size, device)
    seconds: list[list[float]] = [[] for _ in units]

    def timed(number: int, unit: Branch, states: States, condition: Any) -> States:
        out = run_plain(number, unit, states, condition)
        taken = _seconds(device, lambda: unit(states, condition), repeats)
        seconds[number].append(taken)
        return out

    indices = {unit.index for unit in units}

    def without(number: int, block: nn.Module, states: States, condition: Any) -> States:
        return states if number in indices else run_plain(number, block, states, condition)

    cast = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    run_units = net.run_units(units, timed)
    wholes, rests = [], []
    with torch.no_grad(), evaluating(net), evaluating(whole), cast:
        for _ in range(2):
            whole(*inputs)
        for _ in range(rounds):
            wholes.append(_seconds(device, lambda: whole(*inputs), 1))
            rests.append(_seconds(device, lambda: whole(*inputs, run_block=without), 1))
            net(*inputs, run_block=run_units)
    # Units of one shape do the same work: what they differ by is noise.
    alike: dict[tuple[str, int | None], list[float]] = {}
    shapes = [(unit.place.stack + unit.place.part, unit.parameters) for unit in units]
    for shape, times in zip(shapes, seconds, strict=True):
        alike.setdefault(shape, []).extend(times)
    found = {unit.name: median(alike[shape]) for unit, shape in zip(units, shapes, strict=True)}
    return LatencyTable(setting, median(wholes), median(rests), found)


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
    shapes = " ".join("x".join(map(str, part.shape[1:])) for part in net.example_inputs(1)[:1])
    model = f"{type(net).__name__}, {net.depth} blocks, {parameters(net):,} parameters, {shapes}"
    return Setting(model, name, batch_size, precision, compiled)


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
