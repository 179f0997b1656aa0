"""What a model costs: parameters, multiply-accumulates and images per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinyfusion.backbones.contract import Backbone, count_parameters
from tinyfusion.errors import InputError


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
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    state_meta = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    inputs_meta = tuple(value.to("meta") for value in inputs)
    counter = FlopCounterMode(display=False)
    # The fused attention kernels of some devices and versions are not counted, the products of
    # the plain one are.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        functional_call(net, state_meta, inputs_meta)
    return counter.get_total_flops() // 2


def compare_speed(
    runs: Mapping[str, Callable[[], int]], repeats: int = 3, warmup: int = 1
) -> dict[str, dict[str, float]]:
    """Time sampling routines in turn (A B C, A B C, ...), so that drifting load hits all alike.

    The caller states beside the figures what decides them: device, batch size, precision, number
    of sampling steps, whether compiled.

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
    if not runs:
        raise InputError("runs is empty: give at least one routine to time")
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(warmup + repeats):
        for name, run in runs.items():
            rate = _images_per_second(name, run)
            if round_number >= warmup:
                rates[name].append(rate)
    first = next(iter(rates.values()))
    return {
        name: {
            "images_per_s": median(own),
            "images_per_s_min": min(own),
            "images_per_s_max": max(own),
            "ratio": median(rate / base for rate, base in zip(own, first, strict=True)),
        }
        for name, own in rates.items()
    }


def _images_per_second(name: str, run: Callable[[], int]) -> float:
    _wait_for_device()
    start = time.perf_counter()
    images = run()
    _wait_for_device()
    seconds = time.perf_counter() - start
    if images < 1:
        raise InputError(f"routine {name!r} must return the number of images made, got {images}")
    return images / seconds


def _wait_for_device() -> None:
    # CUDA works asynchronously: without this the clock sees only the launches.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
