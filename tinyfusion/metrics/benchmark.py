"""How fast networks sample, measured side by side (TinyFusion, table 1 and figure 4).

*it/s* is sampling steps of one batch per second. A step is one evaluation of the network on the
whole batch; with guidance the network sees every sample twice in it. The paper prints "it/s"
without saying on which device and batch: only ratios can be compared with it. An evaluation of MAR
is one iteration: its backbone once, then all head steps of the tokens that appear.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tinyfusion.backbones.contract import Backbone, compile_blocks
from tinyfusion.errors import InputError
from tinyfusion.metrics.memory import LiveBytes, bytes_of
from tinyfusion.metrics.speed import (
    macs,
    median_and_range,
    parameters,
    quartiles,
    sampling_run,
    time_in_turn,
)
from tinyfusion.processes.contract import Process
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance

MANY_SHAPES = 256
"""How many shapes of states compiled blocks may have: one per width and batch size."""


@dataclass(frozen=True)
class Benchmark:
    """A way of sampling that networks are timed at; the same for all of them.

    Attributes:
        process: the process that they were made for.
        sampler: how they sample; its steps are all run.
        guidance: classifier-free guidance.
        batch_size: samples at a time; the network sees twice as many under guidance.
        rounds: timed rounds; in each, all networks have their turn.
        dtype: what matrix products are computed in, by autocast; ``None`` for float32.
        seed: sampling seed.
        on_round: called after each timed round with what is measured and how many there have been.

    Raises:
        InputError: a count below 1.
    """

    process: Process
    sampler: Sampler
    guidance: Guidance = NO_GUIDANCE
    batch_size: int = 32
    rounds: int = 3
    dtype: torch.dtype | None = None
    seed: int = 0
    on_round: Callable[[str, int], object] = field(default=lambda what, number: None, repr=False)

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")

    def measure(
        self, nets: Mapping[str, Backbone], backends: Sequence[str | None] = (None,)
    ) -> list[dict[str, Any]]:
        """Measure networks, the first of which is what speed-ups are over.

        Args:
            nets: networks by name, all on the device to sample on. Their blocks are left compiled
                if ``backends`` says so.
            backends: how the blocks run, one pass for each: ``None``, which has to come first if it
                is there, as they are; or the name of a ``torch.compile`` backend.

        Returns:
            One row per network and pass, passes one after the other:

            - ``model``, ``compiled``, ``depth``, ``parameters``, ``macs`` (of one sample)
            - ``evaluations``: of the network, to sample one batch
            - ``it_per_s``, ``images_per_s``: with ``batch_size`` samples at a time
            - ``speed_up``: ``it_per_s`` over the first network's in the same pass, the median of
                the rounds' ratios
            - ``latency_s_per_step``, ``latency_s_per_image``: seconds with one sample at a time
            - ``peak_memory_bytes``: see `peak_memory`; ``None`` if it can't be told

            Where a figure is a median of rounds, ``..._q1`` and ``..._q3`` (quartiles), ``..._min``
            and ``..._max`` stand beside it.

        Raises:
            InputError: what sampling refuses.
        """
        if backends[0] is None:
            counted = {name: self._count(net) for name, net in nets.items()}
        else:
            # Hooks of compiled blocks may be passed over.
            counted = {name: (*self._count(net)[:2], None) for name, net in nets.items()}
        rows: list[dict[str, Any]] = []
        for backend in backends:
            with nullcontext() if backend is None else _many_shapes():
                if backend is not None:
                    for net in nets.values():
                        compile_blocks(net, backend, dynamic=False if net.fixed_shapes else None)
                rows += self._timed(nets, counted, compiled=backend is not None)
        return rows

    def _run(self, net: Backbone, images: int) -> Callable[[], int]:
        return sampling_run(
            net, self.process, self.sampler, self.guidance, images, seed=self.seed, dtype=self.dtype
        )

    def _count(self, net: Backbone) -> tuple[int, int, int | None]:
        """Evaluations to sample a batch and to sample one image; on a CPU the peak memory, too."""
        with counted_evaluations(net) as batch:
            peak = None
            if _device(net).type == "cuda":
                self._run(net, self.batch_size)()
            else:
                peak = peak_memory(net, self._run(net, self.batch_size))
        if self.batch_size == 1:
            return batch[0], batch[0], peak
        with counted_evaluations(net) as single:
            self._run(net, 1)()
        return batch[0], single[0], peak

    def _timed(
        self,
        nets: Mapping[str, Backbone],
        counted: Mapping[str, tuple[int, int, int | None]],
        compiled: bool,
    ) -> list[dict[str, Any]]:
        # Networks were run once to count; compiled blocks are compiled in their first round.
        warm_up = 1 if compiled else 0
        suffix = ", compiled" if compiled else ""

        def seconds(images: int) -> dict[str, list[float]]:
            return time_in_turn(
                {name: self._run(net, images) for name, net in nets.items()},
                self.rounds,
                warm_up,
                lambda number: self.on_round(f"batch {images}{suffix}", number),
            )

        batch = seconds(self.batch_size)
        single = batch if self.batch_size == 1 else seconds(1)
        first: list[float] = []
        rows = []
        for name, net in nets.items():
            evaluations, alone, peak = counted[name]
            if _device(net).type == "cuda":
                peak = peak_memory(net, self._run(net, self.batch_size))
            elif compiled:
                peak = None  # what compiled code makes for itself is not seen
            rates = [evaluations / taken for taken in batch[name]]
            first = first or rates
            ratios = [rate / base for rate, base in zip(rates, first, strict=True)]
            rows.append(
                {
                    "model": name,
                    "compiled": compiled,
                    "depth": net.depth,
                    "parameters": parameters(net),
                    "macs": macs(net),
                    "evaluations": evaluations,
                    **_figures("it_per_s", rates),
                    **_figures("images_per_s", [self.batch_size / taken for taken in batch[name]]),
                    **_figures("speed_up", ratios),
                    **_figures("latency_s_per_step", [taken / alone for taken in single[name]]),
                    **_figures("latency_s_per_image", single[name]),
                    "peak_memory_bytes": peak,
                }
            )
        return rows


@contextmanager
def counted_evaluations(net: Backbone) -> Iterator[list[int]]:
    """Count how often a network is evaluated, whichever of its methods a sampler calls.

    Yields:
        A list of one number, which grows.
    """
    count = [0]

    def one_more(*_: object) -> None:
        count[0] += 1

    # Every evaluation runs every block once (`tinyfusion.backbones.contract`).
    handle = net.blocks[0].register_forward_pre_hook(one_more)
    try:
        yield count
    finally:
        handle.remove()


def peak_memory(net: Backbone, run: Callable[[], object]) -> int:
    """Bytes of a network's own weights and of the most that a run of it held besides.

    On CUDA the allocator reports how much there was at once. A CPU has no such counter: what is
    counted there are the tensors that operations of the run make (`LiveBytes`), without what
    kernels take for themselves.

    Args:
        net: the network. Others may be on the device as well; they do not count.
        run: uses it once.
    """
    device = _device(net)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return bytes_of(net) + torch.cuda.max_memory_allocated(device) - before
    with LiveBytes((*net.parameters(), *net.buffers())) as counted:
        run()
    return bytes_of(net) + counted.peak


def device_name(device: torch.device) -> str:
    """The maker's name of a device; of a CPU that does not report one, its architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux; elsewhere the architecture has to do
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU, {models[0] if models else platform.machine()}"


def _figures(name: str, values: list[float]) -> dict[str, float]:
    return median_and_range(name, values) | quartiles(name, values)


def _device(net: Backbone) -> torch.device:
    return next(net.parameters()).device


@contextmanager
def _many_shapes() -> Iterator[None]:
    """Let every shape have compiled code of its own: the usual limit is meant for mistakes."""
    import torch._dynamo  # slow to import

    with torch._dynamo.config.patch(recompile_limit=MANY_SHAPES):
        yield
