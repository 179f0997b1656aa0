"""Groups that a checkpoint brings along: its process, its sampler and what goes with them.

They are found by name among the configurations that are there, shipped ones and the user's own,
and become overrides of the command line. Nothing that a file records is ever built.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from tinyfusion.settings.overrides import first_text, split
from tinyfusion.settings.overview import choices, defaults_of
from tinyfusion.settings.written import as_overrides, backbone_in, chosen_by, written_in

TRAINED_WITH = "trained_with"
"""Key of a model's provenance under which ``process`` and ``sampler`` are recorded."""


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
    chosen = chosen_by(given, folders)
    default, _ = defaults_of(command)
    open_groups = {
        group for group, name in default.items() if name != "null" and group not in chosen
    }
    if "backbone" in chosen or not open_groups:
        return []
    overrides: list[str] = []
    names: dict[str, str] = {}
    if checkpoint in PRESETS and checkpoint not in PACKAGED:  # a size, with random weights
        found, names = None, backbone_in(checkpoint, folders)[1]
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
    usual = names.get("process", default["process"])
    process = _recorded(found, "process", usual, folders)
    said = as_overrides("process", process, default["process"], folders) if process else None
    if said is not None and "process" in open_groups:
        by_group["process"] = said
    # A default sampler is one for the default process, and a backbone's of no size is for any.
    typed = [text.partition("=")[2] for text in given if text.startswith("process=")]
    used = written_in("process", typed[-1], folders) if typed else process
    another = used.get("_target_") not in (None, _class_of(default, folders))
    unsized = fitting is None or not (fitting[1].keys() - {"_target_"})
    sampler = _recorded(found, "sampler", None, folders)
    if another and sampler and "sampler" in open_groups and (unsized or "sampler" not in by_group):
        drawn = as_overrides("sampler", sampler, default["sampler"], folders)
        by_group |= {} if drawn is None else {"sampler": drawn}
    values = [*overrides, *(text for texts in by_group.values() for text in texts)]
    return [text for text in values if text.lstrip("+").partition("=")[0] not in chosen]


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
        node, groups = backbone_in(name, folders)
        sizes = {k: v for k, v in node.items() if not k.startswith("_")}
        sizes = {k: v for k, v in sizes.items() if k not in (*FREE_ARGUMENTS, *counts)}
        if found.arguments is None:
            sizes.pop("num_heads", None)  # not to be seen in tensors
        fits = all((arguments or {}).get(key) == value for key, value in sizes.items())
        if node.get("_target_") == target and fits and (len(sizes), -len(name)) > rank:
            best, rank = (name, node, groups), (len(sizes), -len(name))
    return best


def _class_of(default: Mapping[str, str], folders: Sequence[Path]) -> Any:
    """Dotted name of the class of a command's default process."""
    return written_in("process", default["process"], folders).get("_target_")


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
    base = written_in(group, choice, folders)
    said = recorded_process(found, str(base["_target_"])) if base.get("_target_") else {}
    return {**base, **{key: value for key, (_, value) in said.items()}} if said else {}


def overrides_for(command: str, given: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """What has to be chosen before composing, as values that were given are of brought groups.

    A value such as ``sampler.iterations=8`` can be set only where the group that has it is chosen.

    Args:
        command: the command.
        given: overrides, in Hydra's grammar.
        folders: further configuration folders (``--config-dir``).

    Returns:
        Overrides to put before those that were given; none for a sweep over checkpoints.
    """
    keys = [text.lstrip("+~").partition("=")[0] for text in given]
    deeper = {key.partition(".")[0] for key in keys if "." in key} & set(GROUPS) - set(keys)
    written = [split(text) for text in given if text.startswith(("checkpoint=", "models="))]
    if not deeper or not written:
        return []
    key, value = written[-1]
    file = first_text(value or "")
    if file is None or (key == "models" and any(text.startswith("images=") for text in given)):
        return []  # several, by a sweep
    found = brought_along(command, file, given, folders)
    if found:
        notice(_brings(key, file, found), again=False)
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

    try:
        command, models = str(cfg.command), cfg.get("models")
        key, first = "checkpoint", cfg.get("checkpoint")
        if isinstance(models, ListConfig) and models:
            key, first = "models", models[0]
        if cfg.get("images") is not None or not isinstance(first, str):
            return cfg
    except OmegaConfBaseException:  # a reference to nothing, which checking will name
        return cfg
    overrides = brought_along(command, first, given, folders)
    if not overrides:
        return cfg
    notice(_brings(key, first, overrides), again=False)
    try:
        return compose(command, [*overrides, *given])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(
            f"{_brings(key, first, overrides)}, with which the rest does not go: "
            f"{explain(error, command, folders)}"
        ) from None


def _brings(key: str, checkpoint: str, overrides: Sequence[str]) -> str:
    return f"{key}={checkpoint} brings {' '.join(text.lstrip('+') for text in overrides)}"
