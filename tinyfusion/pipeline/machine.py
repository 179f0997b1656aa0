"""Devices, strategy, precision and compiler: what this machine can give, asked before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from tinyfusion.errors import InputError, one_line
from tinyfusion.pipeline.devices import check_strategy, devices_per_node
from tinyfusion.ranks import is_rank, local_rank
from tinyfusion.training.settings import TrainerSettings


def count_devices(trainer: TrainerSettings) -> int:
    """Devices over all nodes, without looking whether they are there.

    Raises:
        InputError: a strategy that is not known, or all GPUs where there are none.
    """
    check_strategy(trainer)
    return devices_per_node(trainer) * trainer.num_nodes


def scoring_device(trainer: TrainerSettings) -> torch.device:
    """Where this process scores and samples: the device that it trains on."""
    wants_gpu = trainer.accelerator in ("gpu", "cuda", "auto")
    if not (wants_gpu and torch.cuda.is_available()):
        return torch.device("cpu")
    if is_rank():
        # A launcher may show each rank its own device alone.
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device("cuda")


def check_gpu(trainer: TrainerSettings) -> None:
    """Refuse to train on a GPU that is not there.

    Raises:
        InputError: there is none that torch can use.
    """
    if trainer.accelerator in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise InputError(
            f"trainer: accelerator={trainer.accelerator}, but there is no GPU that torch can use; "
            "on processors: trainer=cpu"
        )


def check_machine(
    trainer: TrainerSettings,
    optimizer: Callable[..., Optimizer] | None,
    device: torch.device,
) -> None:
    """Refuse a trainer or an optimiser that this machine or these settings can't give.

    Args:
        trainer: devices, strategy and precision.
        optimizer: makes the optimiser; ``None`` for a command without one.
        device: where the optimiser's parameters will be.

    Raises:
        InputError: no GPU where one is asked for, what Lightning or torch says against them,
            float16 on a CPU, or an unknown ``compile_backend``.
    """
    check_strategy(trainer)
    check_gpu(trainer)
    if trainer.compile:
        # The ones for finding faults are taken, too, but not advertised.
        if trainer.compile_backend not in torch.compiler.list_backends(exclude_tags=()):
            raise InputError(
                f"trainer.compile_backend={trainer.compile_backend!r} is not known; valid: "
                f"{', '.join(torch.compiler.list_backends())}"
            )
    if optimizer is not None:
        dummy = torch.nn.Parameter(torch.zeros(2, 2, device=device))
        with _refusing("optimizer"):
            optimizer([{"params": [dummy]}], lr=1e-3)
    from tinyfusion.pipeline.fit import new_trainer  # Lightning takes seconds to import

    names = ("accelerator", "devices", "strategy", "precision")
    settings = ", ".join(f"{name}={getattr(trainer, name)}" for name in names)
    with _refusing(f"trainer: {settings}"):
        built = new_trainer(trainer, logger=False, enable_checkpointing=False)
    if built.precision != trainer.precision and built.precision == "bf16-mixed":
        raise InputError(
            f"trainer.precision={trainer.precision} with its gradient scaler needs a GPU, and this "
            "trainer runs on a CPU; valid there: bf16-mixed, 32-true"
        )


@contextmanager
def _refusing(key: str) -> Iterator[None]:
    """Turn what a library refuses into one line led by ``key``."""
    try:
        yield
    except InputError:
        raise
    # Lightning and torch refuse with errors of many kinds.
    except Exception as error:
        raise InputError(f"{key}: {one_line(error)}") from None
