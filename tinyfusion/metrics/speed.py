"""What a model costs: parameters, multiply-accumulates, and seconds, measured in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, count_parameters
from tinyfusion.backbones.meta import counting_macs, run_on_meta
from tinyfusion.errors import InputError
from tinyfusion.processes.contract import Process
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.generate import generate
from tinyfusion.samplers.guidance import Guidance

Clock = Callable[[], float]
"""Tells the time in seconds."""


def parameters(net: nn.Module) -> int:
    """Number of parameters, fixed position tables included."""
    return count_parameters(net)


def macs(net: nn.Module, inputs: tuple[Tensor, ...] | None = None) -> int:
    """Multiply-accumulates of matrix products and convolutions in one forward of one sample.

    Norms, activations and element-wise products are left out, as is usual. Runs on the meta
    device: nothing is computed and the weights stay where they are.

    Args:
        net: any module, on any device.
        inputs: arguments of one forward at batch size 1; default: a backbone's example inputs.

    Raises:
        InputError: ``inputs`` is left out for a module that is no backbone.
    """
    if inputs is None:
        if not isinstance(net, Backbone):
            raise InputError(
                f"inputs: {type(net).__name__} is no Backbone with example inputs; give the "
                "arguments of one forward at batch size 1"
            )
        inputs = net.example_inputs(device="meta")
    with counting_macs() as so_far:
        run_on_meta(net, inputs)
    return so_far()


def matrix_peak(
    device: torch.device, dtype: torch.dtype | None = None, side: int = 8192, repeats: int = 30
) -> float:
    """Operations per second of the largest of some equal matrix products, measured on a device.

    A multiplication and an addition are two operations. What networks reach is told as a share
    of it.

    Args:
        device: the device.
        dtype: of the matrices; ``None`` for float32.
        side: rows and columns of both.
        repeats: products between two looks at the clock; the best of five such runs counts.
    """
    left, right = torch.randn(2, side, side, device=device, dtype=dtype).unbind()

    def products() -> None:
        for _ in range(repeats):
            left @ right

    seconds = time_in_turn({"products": products}, rounds=5)["products"]
    return 2 * side**3 * repeats / min(seconds)


def sampling_run(
    net: Backbone,
    process: Process,
    sampler: Sampler,
    guidance: Guidance,
    images: int,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Callable[[], int]:
    """A routine that samples once with the real sampler, to be timed.

    Everything that sampling does is in it, drawing the noise and bringing the samples back to the
    CPU included; a decoder of latents is not.

    Args:
        net: the denoiser.
        process: the process that it was made for.
        sampler: how to sample.
        guidance: a scale other than 1 doubles the batch that the network sees.
        images: samples per run, of the network's own `example_conditioning`: all classes in turn.
        batch_size: samples at a time; ``None``: all.
        seed: sampling seed; every run draws the same.
        dtype: what matrix products are computed in, by autocast; ``None`` for float32.

    Returns:
        A function that gives the number of images made.
    """
    conditioning = net.example_conditioning(images)
    size = batch_size or images

    def run() -> int:
        made = generate(
            net, process, sampler, conditioning, seed, guidance, batch_size=size, dtype=dtype
        )
        return len(made)

    return run


def time_in_turn(
    runs: Mapping[str, Callable[[], object]],
    rounds: int = 3,
    warm_up: int = 1,
    on_round: Callable[[int], object] | None = None,
    clock: Clock | None = None,
) -> dict[str, list[float]]:
    """Time routines in turn (A B C, A B C, ...), so that drifting load hits all alike.

    The caller states beside the figures what decides them: device, batch size, precision, number
    of sampling steps, whether compiled.

    Args:
        runs: routines by name.
        rounds: timed rounds.
        warm_up: rounds before them that are not timed.
        on_round: called after each timed round with how many there have been.
        clock: what tells the time; default: `wall_time`.

    Returns:
        Seconds of each routine, one figure per timed round, in their order.

    Raises:
        InputError: no routine or no round.
    """
    if not runs:
        raise InputError("runs is empty: give at least one routine to time")
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, got {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(1 - warm_up, rounds + 1):
        for name, run in runs.items():
            taken = seconds_of(run, clock or wall_time)
            if number > 0:
                seconds[name].append(taken)
        if number > 0 and on_round is not None:
            on_round(number)
    return seconds


def compare_speed(
    runs: Mapping[str, Callable[[], int]], repeats: int = 3, warmup: int = 1
) -> dict[str, dict[str, float]]:
    """Images per second of sampling routines that are timed in turn, see `time_in_turn`.

    Args:
        runs: name -> function that samples once and returns the number of images made.
        repeats: timed rounds.
        warmup: rounds before them that are not timed.

    Returns:
        For each name ``images_per_s`` (median over rounds), ``images_per_s_min``,
        ``images_per_s_max`` and ``ratio``, the median over rounds of its rate over the first
        routine's rate in the same round (above 1: faster than the first).

    Raises:
        InputError: no routine, no round, or a routine that made no image.
    """
    images: dict[str, list[int]] = {name: [] for name in runs}

    def counted(name: str) -> Callable[[], None]:
        def run() -> None:
            made = runs[name]()
            if made < 1:
                raise InputError(
                    f"routine {name!r} must return the number of images made, got {made}"
                )
            images[name].append(made)

        return run

    seconds = time_in_turn({name: counted(name) for name in runs}, repeats, warmup)
    rates = {
        name: [made / taken for made, taken in zip(images[name][warmup:], own, strict=True)]
        for name, own in seconds.items()
    }
    first = next(iter(rates.values()))
    return {
        name: {
            **median_and_range("images_per_s", own),
            "ratio": median(rate / base for rate, base in zip(own, first, strict=True)),
        }
        for name, own in rates.items()
    }


def median_and_range(name: str, values: list[float]) -> dict[str, float]:
    """Median, least and largest of some rounds' figures: ``name``, ``name_min``, ``name_max``."""
    return {name: median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def quartiles(name: str, values: list[float]) -> dict[str, float]:
    """First and third quartile of some rounds' figures: ``name_q1``, ``name_q3``.

    Where other work shares the machine, they say more than the least and the largest.
    """
    if len(values) == 1:
        return {f"{name}_q1": values[0], f"{name}_q3": values[0]}
    first, _, third = quantiles(values, n=4, method="inclusive")
    return {f"{name}_q1": first, f"{name}_q3": third}


def seconds_of(run: Callable[[], object], clock: Clock) -> float:
    """How long a routine takes by a clock."""
    start = clock()
    run()
    return clock() - start


def wall_time() -> float:
    """Seconds on the clock, once the device has done what it was given."""
    # CUDA works asynchronously: without this the clock sees only the launches.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def processor_time() -> float:
    """Seconds of all threads of this process: other work on the machine does not count.

    With one thread, and without waiting for files, the time that the work takes on an idle machine.
    """
    return time.process_time()
