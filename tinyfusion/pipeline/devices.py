"""From the trainer's settings to processes, one for each device."""

from __future__ import annotations

import torch

from tinyfusion.errors import InputError
from tinyfusion.group import Group, joined
from tinyfusion.processors import processors
from tinyfusion.training.settings import TrainerSettings

FSDP = "fsdp"
STRATEGIES = ("auto", "ddp", FSDP)


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
    return min(settings.num_workers, processors())


def check_count(key: str, count: int) -> None:
    """Refuse to start so many processes that the machine would come to a stop.

    Args:
        key: what says how many, for the message.
        count: processes on this machine.

    Raises:
        InputError: more than 16, and more than four for each processor.
    """
    most = max(16, 4 * processors())
    if count > most:
        raise InputError(
            f"{key}={count}: too many processes for this machine, which has {processors()} "
            f"processor(s); valid: at most {most}"
        )


def check_strategy(settings: TrainerSettings) -> None:
    """Refuse a strategy that there is none of.

    Raises:
        InputError: an unknown name, or a precision that the strategy can't give.
    """
    if settings.strategy not in STRATEGIES:
        raise InputError(
            f"trainer.strategy={settings.strategy} is not known; valid: {', '.join(STRATEGIES)}"
        )
    if settings.strategy == FSDP and settings.precision not in ("32-true", "bf16-mixed"):
        raise InputError(
            f"trainer.precision={settings.precision} does not go with trainer.strategy=fsdp; "
            "valid: 32-true, bf16-mixed"
        )


def joined_ranks(settings: TrainerSettings, world: int) -> Group:
    """The ranks that share a command's work, which meet here; this process alone, if it is none.

    Args:
        settings: what was configured of devices.
        world: number of ranks that follow from it; as many were started (`tinyfusion.ranks.agree`).

    Raises:
        InputError: the ranks can't know where to meet.
        RanksFailedError: they did not all come.
    """
    wants_gpu = settings.accelerator in ("gpu", "cuda", "auto")
    return joined(world, cuda=wants_gpu and torch.cuda.is_available())
