"""How many processes a configuration asks for, held against those that were started."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyfusion.ranks import agree, is_rank


def agree_on_processes(cfg: DictConfig) -> None:
    """See `tinyfusion.ranks.agree`; asked before a configuration is checked, and of every command.

    Args:
        cfg: composed configuration. Where it does not say how many devices there are, in whole
            numbers, nothing is asked: it will be refused.

    Raises:
        InputError: see there; or all GPUs are asked for and there is none.
    """
    devices, num_nodes = _select(cfg, "trainer.devices", 1), _select(cfg, "trainer.num_nodes", 1)
    workers = _select(cfg, "workers", None)
    encodes = cfg.get("command") == "encode"
    if not (isinstance(devices, int) and isinstance(num_nodes, int)):
        return
    if encodes and isinstance(workers, int):
        agree(f"workers={workers}", workers)
    elif encodes and is_rank() and devices in (1, -1):
        agree("", None)  # however many there are, they share the work
    else:
        asked = f"trainer.devices={devices} trainer.num_nodes={num_nodes}"
        if devices == -1 and is_rank():
            # Imports torch, which a mistyped key is not to wait for.
            from tinyfusion.pipeline.devices import devices_per_node
            from tinyfusion.training.settings import TrainerSettings

            accelerator = str(_select(cfg, "trainer.accelerator", "auto"))
            devices = devices_per_node(TrainerSettings(accelerator=accelerator, devices=-1))
        agree(asked, devices * num_nodes, devices, num_nodes)


def _select(cfg: DictConfig, key: str, default: Any) -> Any:
    try:
        return OmegaConf.select(cfg, key, default=default)
    except OmegaConfBaseException:
        return "unreadable"
