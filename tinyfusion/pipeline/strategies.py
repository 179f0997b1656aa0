"""From the trainer's settings to what Lightning is told of devices and ranks."""

from __future__ import annotations

import os

from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from tinyfusion import ranks
from tinyfusion.group import PATIENCE, set_meeting_point
from tinyfusion.pipeline.devices import FSDP, check_strategy, devices_per_node, needs_ranks
from tinyfusion.training.settings import TrainerSettings
from tinyfusion.training.sharding import FullySharded


def strategy_of(settings: TrainerSettings, leaves_unused: bool = False) -> str | Strategy:
    """Lightning's strategy for these settings.

    Args:
        settings: devices, strategy and precision.
        leaves_unused: see `DenoiserTraining`.

    Raises:
        InputError: see `check_strategy`.
    """
    check_strategy(settings)
    if not needs_ranks(settings):
        return "auto"
    if settings.strategy != FSDP:
        return DDPStrategy(timeout=PATIENCE, find_unused_parameters=leaves_unused)
    return FullySharded(devices_per_node(settings) * settings.num_nodes)


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
