"""Networks as shapes without values: structure and operations are known before anything is run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

Module = TypeVar("Module", bound=nn.Module)


def shape_copy(module: Module) -> Module:
    """A copy of a module whose parameters have shapes only."""
    shapes = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, shapes)


def run_on_meta(net: nn.Module, inputs: Sequence[Tensor], **options: Any) -> Any:
    """One forward in which nothing is computed; the weights stay where they are.

    Args:
        net: any module, on any device.
        inputs: positional arguments of its forward.
        options: keyword arguments.

    Returns:
        What the forward gives, on the meta device.
    """
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    state_meta = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    inputs_meta = tuple(value.to("meta") for value in inputs)
    with torch.no_grad():
        return functional_call(net, state_meta, inputs_meta, options)


@contextmanager
def counting_macs() -> Iterator[Callable[[], int]]:
    """Count the multiply-accumulates of matrix products and convolutions run within.

    Norms, activations and element-wise products are left out, as is usual.

    Yields:
        A function that gives how many there have been so far.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    counter = FlopCounterMode(display=False)
    # The fused attention kernels of some devices and versions are not counted, the products of
    # the plain one are.
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield lambda: counter.get_total_flops() // 2
