"""Names of classes and keys that configurations and users of former versions still use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

from tinyfusion.errors import InputError
from tinyfusion.settings.compose import locate, parameters_of

RENAMED: dict[str, str] = {
    "tinyfusion.settings.schema.StageTraining": "tinyfusion.training.settings.PhaseSettings",
    "tinyfusion.settings.schema.TrainingSettings": "tinyfusion.training.settings.TrainingSettings",
    "tinyfusion.settings.schema.TrainerSettings": "tinyfusion.training.settings.TrainerSettings",
    "tinyfusion.tracking.Tracking": "tinyfusion.tracking.contract.Tracking",
    "tinyfusion.tracking.TensorBoard": "tinyfusion.tracking.tensorboard.TensorBoard",
    "tinyfusion.tracking.Wandb": "tinyfusion.tracking.wandb.Wandb",
}
"""Present dotted name of a ``_target_`` by its former one."""


KEYS: dict[str, str] = {
    "logger.project": "logger.wandb.project",
    "logger.entity": "logger.wandb.entity",
    "logger.offline": "logger.wandb.mode",
    "logger.wandb.offline": "logger.wandb.mode",
}
"""Present key by its former one, for who types it."""

_WANDB = "tinyfusion.tracking.wandb.Wandb"
_LOGGERS = {
    "tinyfusion.tracking.contract.Tracking": "csv",
    "tinyfusion.tracking.tensorboard.TensorBoard": "tensorboard",
    _WANDB: "wandb",
}


def update_loggers(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Give a logger that stands right under ``logger`` a name there, in place.

    So it was written when there could be one alone, and so it may be in a user's own file.

    Args:
        cfg: a configuration of any command, its classes by their present names.
        overrides: what the command line said.

    Raises:
        InputError: the files of several loggers that were chosen set the same keys, so that one of
            them would be lost; or a former key.
    """
    node = cfg.get("logger")
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    if "_target_" in node:
        target = str(node["_target_"])
        arguments = parameters_of(locate(target, "logger"))
        content = cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))
        named = {
            key: value
            for key, value in content.items()
            if key not in arguments and isinstance(value, dict) and "_target_" in value
        }
        own = {key: value for key, value in content.items() if key not in named}
        if target == _WANDB and "offline" in own:
            said = own.pop("offline")
            own["mode"] = None if said is None else "offline" if said else "online"
        name = _LOGGERS.get(target, target.rpartition(".")[2].lower())
        cfg["logger"] = {**named, name: own}
    for key in cfg["logger"]:
        if f"logger.{key}" in KEYS:
            raise InputError(f"logger.{key}= is {KEYS[f'logger.{key}']}= now")
    chosen = [text for text in overrides if text.startswith("logger=[")]
    names = set(chosen[-1].partition("[")[2].rstrip("] ").split(",")) - {""} if chosen else set()
    if len(names) > len(cfg["logger"]):
        raise InputError(
            f"{chosen[-1]}: their files set the same keys, so that only {', '.join(cfg['logger'])} "
            "would log; in each file, put its logger under a name of its own: NAME: {_target_: ...}"
        )


def update_targets(node: Any) -> None:
    """Replace former names under ``_target_``, anywhere in a configuration, in place."""
    if isinstance(node, DictConfig):
        for key in node:
            value = node._get_node(key)
            if key == "_target_" and value is not None and value._value() in RENAMED:
                node[key] = RENAMED[value._value()]
            elif isinstance(value, DictConfig | ListConfig):
                update_targets(value)
    elif isinstance(node, ListConfig) and not node._is_missing() and not node._is_none():
        for index in range(len(node)):
            update_targets(node._get_node(index))
