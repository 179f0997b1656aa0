"""Groups that a checkpoint brings along: its process, its sampler and what goes with them.

They are found by name among the configurations that are there, shipped ones and the user's own,
and become overrides of the command line. Nothing that a file records is ever built.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig

from tinyfusion.backbones.by_name import dotted_name
from tinyfusion.backbones.presets import FAMILIES, PRESETS, families_by
from tinyfusion.checkpoints.checkpoint import Checkpoint
from tinyfusion.checkpoints.expected import FREE_ARGUMENTS
from tinyfusion.checkpoints.locate import PACKAGED
from tinyfusion.checkpoints.read import look_at
from tinyfusion.errors import InputError
from tinyfusion.notices import notice
from tinyfusion.settings.commands import GROUPS
from tinyfusion.settings.compose import locate
from tinyfusion.settings.overview import choices, conf_folder, defaults_of

TRAINED_WITH = "trained_with"
"""Key of a model's provenance under which ``process`` and ``sampler`` are recorded."""

_WORD = re.compile(r"[A-Za-z_][\w.-]*")


def brought_along(
    command: str, checkpoint: str, given: Sequence[str], folders: Sequence[Path] = ()
) -> list[str]:
    """Overrides that a checkpoint needs beside those that were given.

    Args:
        command: the command.
        checkpoint: anything that ``checkpoint=`` takes.
        given: the command's overrides; groups that they choose are left alone.
        folders: further configuration folders (``--config-dir``).

    Returns:
        Choices of groups, and values in them; nothing where the defaults do, where ``backbone=``
        is given, or where the file does not say what it is.
    """
    chosen = _chosen_by(given, folders)
    default, _ = defaults_of(command)
    open_groups = {
        group for group, name in default.items() if name != "null" and group not in chosen
    }
    if "backbone" in chosen or not open_groups:
        return []
    overrides: list[str] = []
    names: dict[str, str] = {}
    if checkpoint in PRESETS and checkpoint not in PACKAGED:  # a size, with random weights
        found, names = None, _read_backbone(checkpoint, folders)[1]
    else:
        found = look_at(checkpoint)
    fitting = _backbone_of(found, folders) if found else None
    if found is not None and fitting is not None:
        name, node, names = fitting
        if found.backbone is not None and found.backbone not in FAMILIES:
            # Its class has to be imported; sizes are what the checkpoint says.
            sizes = [f"~backbone.{key}" for key in node if not key.startswith("_")]
            overrides += [f"backbone={name}", *sizes]
    by_group = {
        group: [f"{group}={name}"]
        for group, name in names.items()
        if group in open_groups and name != default[group]
    }
    if found is None:
        return [text for texts in by_group.values() for text in texts]
    process = _recorded(found, "process", names.get("process", default.get("process")), folders)
    if process and "process" in open_groups:
        by_group["process"] = _as_overrides("process", process, default["process"], folders)
    walks_another = by_group.get("process") and "sampler" not in by_group
    sampler = _recorded(found, "sampler", None, folders)
    if walks_another and sampler and "sampler" in open_groups:
        by_group["sampler"] = _as_overrides("sampler", sampler, default["sampler"], folders)
    return [*overrides, *(text for texts in by_group.values() for text in texts)]


def _chosen_by(given: Sequence[str], folders: Sequence[Path]) -> set[str]:
    """Groups that overrides choose, by themselves or through an experiment."""
    chosen: set[str] = set()
    for text in given:
        key, _, value = text.lstrip("+~").partition("=")
        key = key.partition("@")[0]
        chosen.add(key)
        if key == "experiment":
            chosen |= _chosen_in(value.strip("'\""), folders)
    return chosen


def _chosen_in(experiment: str, folders: Sequence[Path]) -> set[str]:
    """Groups that an experiment chooses, or sets values in."""
    content = _read("experiment", experiment, folders)
    chosen = {str(key) for key in content if key in GROUPS}
    for item in content.get("defaults") or ():
        if isinstance(item, str) and item != "_self_":
            chosen |= _chosen_in(item, folders)
        elif isinstance(item, dict):
            chosen |= {str(key).removeprefix("override ").strip("/ ") for key in item}
    return chosen


def _read(group: str, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """A configuration file as it is written; empty if there is none."""
    for folder in (*folders, conf_folder()):
        file = folder / group / f"{name}.yaml"
        if file.is_file():
            try:
                content = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                return {}  # composing it says what is wrong
            return content if isinstance(content, dict) else {}
    return {}


def _read_backbone(name: str, folders: Sequence[Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """Class and arguments of a backbone's configuration, and the groups that it chooses."""
    content = _read("backbone", name, folders)
    node: dict[str, Any] = {}
    groups: dict[str, str] = {}
    for item in content.pop("defaults", None) or ():
        if isinstance(item, str) and item != "_self_":
            inner, chosen = _read_backbone(item, folders)
            node |= inner
            groups |= chosen
        elif isinstance(item, dict):
            for key, value in item.items():
                groups[str(key).removeprefix("override ").strip("/ ")] = str(value)
    # With "@package _global_" its own keys are one level further in.
    own = content.get("backbone") if isinstance(content.get("backbone"), dict) else content
    return node | dict(own or {}), groups


def _backbone_of(
    found: Checkpoint, folders: Sequence[Path]
) -> tuple[str, dict[str, Any], dict[str, str]] | None:
    """The configuration of a checkpoint's backbone: of its size if there is one, else its class.

    Returns:
        Its name, class and arguments, and the groups that it chooses.
    """
    fitting = families_by(found.state)
    family = found.backbone or (fitting[0] if len(fitting) == 1 else None)
    if family is None:
        return None
    kind = FAMILIES.get(family)
    target = dotted_name(kind) if kind else family
    counts = kind.depth_arguments if kind else ("depth",)
    arguments = found.arguments
    if arguments is None and kind and kind.public_files:
        try:
            known = {"num_heads": 1, **found.hints}
            arguments = kind.public_files.infer(found.state.meta, str(found.path), known)
        except InputError:
            return None
    best: tuple[str, dict[str, Any], dict[str, str]] | None = None
    rank = (-1, 0)
    for name in choices("backbone", folders):
        node, groups = _read_backbone(name, folders)
        sizes = {k: v for k, v in node.items() if not k.startswith("_")}
        sizes = {k: v for k, v in sizes.items() if k not in (*FREE_ARGUMENTS, *counts)}
        if found.arguments is None:
            sizes.pop("num_heads", None)  # not to be seen in tensors
        fits = all((arguments or {}).get(key) == value for key, value in sizes.items())
        if node.get("_target_") == target and fits and (len(sizes), -len(name)) > rank:
            best, rank = (name, node, groups), (len(sizes), -len(name))
    return best


def recorded_process(found: Checkpoint, target: str) -> dict[str, tuple[str, Any]]:
    """What a checkpoint records of the process that it was trained with.

    Args:
        found: the checkpoint.
        target: dotted name of the process's class, as the user's configuration says.

    Returns:
        Constructor arguments, each with the words that recorded it.
    """
    node = _record(found, "process")
    if node.get("_target_") == target:
        return {k: (f"process.{k}", v) for k, v in node.items() if not k.startswith("_")}
    args = found.provenance.get("args")
    read = getattr(locate(target, "process"), "from_training_args", None)
    return dict(read(args)) if isinstance(args, dict) and read is not None else {}


def process_notes(found: Checkpoint, process: Mapping[str, Any]) -> list[str]:
    """Where the process that is used is not the one that a checkpoint was trained with.

    Args:
        found: the checkpoint.
        process: the configured process.
    """
    target = str(process["_target_"])
    node = _record(found, "process")
    if node.get("_target_") not in (None, target):
        return [f"records that it was trained with process {node['_target_']}, not {target}"]
    parameters = inspect.signature(locate(target, "process")).parameters
    notes = []
    for key, (word, value) in recorded_process(found, target).items():
        default = parameters[key].default if key in parameters else None
        used = process.get(key, default)
        if used != value:
            notes.append(f"records {word}={value}, but it is run with process.{key}={used}")
    return notes


def _record(found: Checkpoint, group: str) -> dict[str, Any]:
    made = found.provenance.get(TRAINED_WITH)
    node = made.get(group) if isinstance(made, dict) else None
    return node if isinstance(node, dict) else {}


def _recorded(
    found: Checkpoint, group: str, choice: str | None, folders: Sequence[Path]
) -> dict[str, Any]:
    """A recorded group as a configuration; of a training file the choice with what args say."""
    node = _record(found, group)
    if node or choice is None:
        return node
    base = _read(group, choice, folders)
    said = recorded_process(found, str(base["_target_"])) if base.get("_target_") else {}
    return {**base, **{key: value for key, (_, value) in said.items()}} if said else {}


def _as_overrides(
    group: str, node: Mapping[str, Any], default: str, folders: Sequence[Path]
) -> list[str]:
    """A recorded group by the choice that is most like it, and what differs from that.

    Returns:
        Overrides; none if no configuration has its class, or if it is the default.
    """
    best: tuple[int, str, dict[str, Any]] | None = None
    for name in sorted(choices(group, folders), key=lambda name: name != default):
        base = _read(group, name, folders)
        if base.get("_target_") != node.get("_target_"):
            continue
        differing = {k: v for k, v in node.items() if base.get(k) != v and _is_plain(v)}
        if best is None or len(differing) < best[0]:
            best = (len(differing), name, differing)
    if best is None:
        return []
    _, name, differing = best
    values = [f"++{group}.{key}={_written(value)}" for key, value in differing.items()]
    return [*([f"{group}={name}"] if name != default else []), *values]


def _is_plain(value: Any) -> bool:
    """Whether a value may be taken from a file: no object, and no text that means more."""
    return isinstance(value, bool | int | float | None) or (
        isinstance(value, str) and bool(_WORD.fullmatch(value))
    )


def _written(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def overrides_for(command: str, given: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """What has to be chosen before composing, as values that were given are of brought groups.

    A value such as ``sampler.iterations=8`` can be set only where the group that has it is chosen.

    Args:
        command: the command.
        given: overrides as typed.
        folders: further configuration folders (``--config-dir``).

    Returns:
        Overrides to put before those that were given; none for a sweep over checkpoints.
    """
    keys = [text.lstrip("+~").partition("=")[0] for text in given]
    deeper = {key.partition(".")[0] for key in keys if "." in key} & set(GROUPS) - set(keys)
    files = [
        text.partition("=")[2].strip("'\"") for text in given if text.startswith("checkpoint=")
    ]
    if not deeper or not files or "," in files[-1]:
        return []
    found = brought_along(command, files[-1], given, folders)
    if found:
        notice(_brings("checkpoint", files[-1], found))
    return found


def with_brought_along(
    cfg: DictConfig, given: Sequence[str], folders: Sequence[Path]
) -> DictConfig:
    """A composed configuration with what its checkpoint, or its first model, brings along.

    Args:
        cfg: as composed by Hydra, which is there to compose another.
        given: the overrides that it was composed with.
        folders: further configuration folders (``--config-dir``).

    Raises:
        InputError: what was given does not go with what the checkpoint brings.
    """
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from tinyfusion.settings.messages import explain

    command, models = str(cfg.command), cfg.get("models")
    key, first = "checkpoint", cfg.get("checkpoint")
    if isinstance(models, ListConfig) and models:
        key, first = "models", models[0]
    if cfg.get("images") is not None or not isinstance(first, str):
        return cfg
    overrides = brought_along(command, first, given, folders)
    if not overrides:
        return cfg
    notice(_brings(key, first, overrides))
    try:
        return compose(command, [*overrides, *given])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(
            f"{_brings(key, first, overrides)}, with which the rest does not go: "
            f"{explain(error, command, folders)}"
        ) from None


def _brings(key: str, checkpoint: str, overrides: Sequence[str]) -> str:
    return f"{key}={checkpoint} brings {' '.join(text.lstrip('+') for text in overrides)}"
