"""Names of classes that configurations written by former versions still use."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig

RENAMED: dict[str, str] = {
    "tinyfusion.settings.schema.StageTraining": "tinyfusion.training.settings.PhaseSettings",
    "tinyfusion.settings.schema.TrainingSettings": "tinyfusion.training.settings.TrainingSettings",
    "tinyfusion.settings.schema.TrainerSettings": "tinyfusion.training.settings.TrainerSettings",
}
"""Present dotted name of a ``_target_`` by its former one."""


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
