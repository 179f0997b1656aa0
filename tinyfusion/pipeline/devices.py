"""From the trainer's settings to processes and strategies: one process per device."""

from __future__ import annotations

import os

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from tinyfusion.errors import InputError
from tinyfusion.group import PATIENCE, Group, joined
from tinyfusion.ranks import (
    is_numbered,
    is_rank,
    is_slurm_rank,
    is_torchrun_rank,
    rank,
    world_size,
)
from tinyfusion.training.settings import TrainerSettings
from tinyfusion.training.sharding import FullySharded

STRATEGIES = ("auto", "ddp", "fsdp")


def needs_ranks(settings: TrainerSettings) -> bool:
    """Whether training runs in processes that know of each other, be it only one."""
    return settings.devices != 1 or settings.num_nodes > 1 or settings.strategy != "auto"


def devices_per_node(settings: TrainerSettings) -> int:
    """Number of devices on each machine; -1 is counted on this one.

    Raises:
        InputError: all GPUs are asked for and there is none, or all of something else.
    """
    if settings.devices != -1:
        return settings.devices
    if settings.accelerator not in ("gpu", "cuda", "auto"):
        raise InputError(
            f"trainer.devices=-1 takes all GPUs; with trainer.accelerator={settings.accelerator} "
            "give the number of processes, such as trainer.devices=2"
        )
    found = torch.cuda.device_count()
    if not found and settings.accelerator != "auto":
        raise InputError(
            "trainer.devices=-1 takes all GPUs, but this machine has none that torch can use; on "
            "processors: trainer.accelerator=cpu trainer.devices=2 trainer.precision=32-true"
        )
    return found or 1


def loader_processes(settings: TrainerSettings) -> int:
    """Data-loading processes of a device: as configured, at most one per processor it may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return min(settings.num_workers, len(os.sched_getaffinity(0)))
    return min(settings.num_workers, os.cpu_count() or 1)


def strategy_of(settings: TrainerSettings) -> str | Strategy:
    """Lightning's strategy for these settings.

    Raises:
        InputError: an unknown name, or a precision that the strategy can't give.
    """
    if settings.strategy not in STRATEGIES:
        raise InputError(
            f"trainer.strategy={settings.strategy} is not known; valid: {', '.join(STRATEGIES)}"
        )
    if not needs_ranks(settings):
        return "auto"
    if settings.strategy != "fsdp":
        return DDPStrategy(timeout=PATIENCE)
    if settings.precision not in ("32-true", "bf16-mixed"):
        raise InputError(
            f"trainer.precision={settings.precision} does not go with trainer.strategy=fsdp; "
            "valid: 32-true, bf16-mixed"
        )
    return FullySharded(devices_per_node(settings) * settings.num_nodes)


def joined_ranks(settings: TrainerSettings, world: int) -> Group | None:
    """The ranks that share a command's work, which meet here; this process alone, if it is none.

    Args:
        settings: what was configured of devices.
        world: number of ranks that follow from it.

    Returns:
        ``None`` for a process beyond those that are asked for, which has nothing to do.

    Raises:
        InputError: other ranks were started than were configured, so that some would be waited
            for in vain; or they can't know where to meet.
        RanksFailedError: they did not all come.
    """
    started = world_size()
    asked = f"trainer.devices={settings.devices} trainer.num_nodes={settings.num_nodes}"
    if started is not None and started != world:
        raise InputError(f"{asked} are {world} rank(s), but {started} were started; start as many")
    if is_rank() and settings.num_nodes > 1 and not is_numbered():
        raise InputError(
            f"{asked}: the ranks are numbered on their machines only (LOCAL_RANK); start them by "
            "torchrun or srun, or one command per machine with NODE_RANK, without LOCAL_RANK"
        )
    if rank() >= world:
        return None
    wants_gpu = settings.accelerator in ("gpu", "cuda", "auto")
    return joined(world, cuda=wants_gpu and torch.cuda.is_available())


def environment() -> list[LightningEnvironment]:
    """How Lightning learns of the other ranks, as plugins: left to it under a cluster's launcher.

    Inside a SLURM job of one task it would otherwise wait for ranks that this package starts.
    """
    return [] if is_torchrun_rank() or is_slurm_rank() else [LightningEnvironment()]
