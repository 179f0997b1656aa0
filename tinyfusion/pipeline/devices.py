"""From the trainer's settings to processes and strategies: one process per device."""

from __future__ import annotations

import os

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from tinyfusion import ranks
from tinyfusion.errors import InputError
from tinyfusion.group import PATIENCE, Group, joined, set_meeting_point
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
    return min(settings.num_workers, _processors())


def check_count(key: str, count: int) -> None:
    """Refuse to start so many processes that the machine would come to a stop.

    Args:
        key: what says how many, for the message.
        count: processes on this machine.

    Raises:
        InputError: more than 16, and more than four for each processor.
    """
    most = max(16, 4 * _processors())
    if count > most:
        raise InputError(
            f"{key}={count}: too many processes for this machine, which has {_processors()} "
            f"processor(s); valid: at most {most}"
        )


def _processors() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def strategy_of(settings: TrainerSettings, leaves_unused: bool = False) -> str | Strategy:
    """Lightning's strategy for these settings.

    Args:
        settings: devices, strategy and precision.
        leaves_unused: see `DenoiserTraining`.

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
        return DDPStrategy(timeout=PATIENCE, find_unused_parameters=leaves_unused)
    if settings.precision not in ("32-true", "bf16-mixed"):
        raise InputError(
            f"trainer.precision={settings.precision} does not go with trainer.strategy=fsdp; "
            "valid: 32-true, bf16-mixed"
        )
    return FullySharded(devices_per_node(settings) * settings.num_nodes)


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


class RankEnvironment(LightningEnvironment):
    """What Lightning asks of the other ranks, answered by `tinyfusion.ranks` alone.

    Its own environments read other variables, and differ in what they take for a rank.

    Args:
        devices: ranks on each machine.
    """

    def __init__(self, devices: int) -> None:
        super().__init__()
        self._devices = devices

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning is never to start any."""
        return True

    @property
    def main_address(self) -> str:
        """Address of the first machine."""
        set_meeting_point()
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """Port there."""
        set_meeting_point()
        return int(os.environ["MASTER_PORT"])

    def set_global_rank(self, rank: int) -> None:
        """Known already; Lightning would count by machines, and SLURM may deal them out in turn."""

    def global_rank(self) -> int:
        """Number over all machines."""
        return ranks.rank()

    def local_rank(self) -> int:
        """Number among those of this machine."""
        return ranks.local_rank() % self._devices

    def node_rank(self) -> int:
        """Number of the machine."""
        return ranks.rank() // self._devices

    def teardown(self) -> None:
        """Leave the environment as it is: the ranks work on."""
