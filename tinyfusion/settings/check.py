"""Refusing a configuration that can't be meant: unknown keys, wrong types, missing values."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Sequence, Set
from typing import Any

from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyfusion.errors import InputError, one_line
from tinyfusion.notices import notice
from tinyfusion.settings.commands import (
    COMMANDS,
    GROUPS,
    OPTIONAL_GROUPS,
    PART_OF,
    PARTS,
    WHOLE,
)
from tinyfusion.settings.compose import keys_of, locate, parameters_of
from tinyfusion.settings.optimized import check_metric
from tinyfusion.settings.overview import choices
from tinyfusion.settings.paths import absolute
from tinyfusion.settings.renamed import update_loggers, update_targets
from tinyfusion.settings.types import check_fields, check_type, hints_of

WITH_LIGHTNING = ("callbacks", "logger")
"""Groups whose classes take seconds to import: checked once all else has been, see `Objects`."""


def check(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """Refuse unknown keys, wrong types and missing values anywhere in a configuration.

    The top level is merged onto the command's schema; every node with a ``_target_`` is validated
    against that callable's signature, but for those in `WITH_LIGHTNING`. Nothing is built. Keys of
    other commands, which experiment files that serve several commands bring along, are dropped.

    Args:
        cfg: composed configuration with a ``command`` key.
        overrides: what the command line said; a key of another command is refused there.

    Returns:
        The configuration with all interpolations resolved and paths that exist made absolute, so
        that a run can be resumed from anywhere.

    Raises:
        InputError: an unknown key, a value of another type, or a required one that is missing.
    """
    command = cfg.get("command")
    if command not in COMMANDS:
        raise InputError(f"command={command!r} is not known; valid: {', '.join(COMMANDS)}")
    update_targets(cfg)
    update_loggers(cfg, overrides)
    schema = OmegaConf.structured(COMMANDS[command])
    typed = {re.split(r"[=.@]", text.lstrip("+~"))[0] for text in overrides}
    foreign = {key for other in COMMANDS.values() for key in other.__dataclass_fields__} - typed
    unknown = [key for key in keys_of(cfg) if key not in schema and key not in foreign]
    if len(unknown) == 1 and unknown[0] in WHOLE:
        raise InputError(
            f"{unknown[0]}: the file puts its keys under {unknown[0]!r} instead of the whole "
            "configuration; its first line must be '# @package _global_', keys follow"
        )
    if unknown:
        raise InputError(
            f"unknown key {unknown[0]!r} for 'tinyfusion {command}'; "
            f"valid: {', '.join(sorted(key for key in keys_of(schema) if key != 'command'))}"
        )
    cfg = OmegaConf.masked_copy(cfg, [key for key in keys_of(cfg) if key in schema])
    _warn_of_idle(cfg, typed)
    _warn_of_left_out(cfg, overrides)
    missing = [key for key in keys_of(cfg) if OmegaConf.is_missing(cfg, key)]
    if missing:
        raise InputError(f"{missing[0]}= must be given for this configuration")
    # Groups that are left out and paths come before interpolations, which are to see the result.
    for group in OPTIONAL_GROUPS:
        # How a choice says that the group is left out, whatever an experiment sets in it.
        if group in cfg and isinstance(cfg[group], DictConfig):
            if "_target_" in cfg[group] and cfg[group]["_target_"] is None:
                cfg[group] = None
    # A user's own recovery need not take an argument that is not set.
    for key, group in PART_OF.items():
        if isinstance(cfg.get(group), DictConfig) and cfg[group].get(key, ...) is None:
            del cfg[group][key]
    try:
        _make_absolute(cfg)
        _resolve(cfg)
        check_fields(cfg, COMMANDS[command])
        merged = OmegaConf.merge(schema, cfg)
    except OmegaConfBaseException as error:
        raise InputError(one_line(error)) from None
    assert isinstance(merged, DictConfig)  # as both parts are
    _check_groups(merged)
    _check_numbers(OmegaConf.to_container(merged), "")
    for group in keys_of(merged):
        if group not in WITH_LIGHTNING:
            check_targets(merged, group)
    check_metric(merged)
    return merged


def check_targets(cfg: DictConfig, group: str) -> None:
    """Validate every node of a group that has a ``_target_`` against that callable's signature.

    Args:
        cfg: what `check` gives, which leaves out the groups `WITH_LIGHTNING`.
        group: one of its keys; one that it lacks has no such node.

    Raises:
        InputError: a class that can't be imported, an unknown key, one that is missing, or a value
            of another type.
    """
    if group in cfg:
        for path, node in _targets(cfg[group], group):
            _check_target(path, node)


def _warn_of_idle(cfg: DictConfig, typed: Set[str]) -> None:
    """Say which choices nobody has a use for; a sweep may cross them with all pruners."""
    if cfg.get("images") is not None:
        for key in sorted(typed & {"checkpoint", "sampler", "teacher", "keep_samples"}):
            notice(f"{key}= changes nothing: images= are scored, not a model's samples")
    if "pruner" not in cfg:
        return
    used = OmegaConf.to_yaml(cfg.pruner, resolve=False)
    for group in ("selector", "delta"):
        referred = re.search(rf"\$\{{[^}}]*\b{group}\b", used)
        if referred is None and group in typed:
            target = str(cfg.pruner.get("_target_")).rpartition(".")[2]
            notice(f"{group}= changes nothing: the pruner ({target}) takes none")


def _warn_of_left_out(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Say which values were given for a group that is left out, as by ``evaluation=none``."""
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        group = key.partition(".")[0]
        node = cfg.get(group) if "." in key and group in OPTIONAL_GROUPS else None
        if isinstance(node, DictConfig) and node.get("_target_", "") is None:
            notice(f"{key}= changes nothing: {group}=none leaves that out")


def _resolve(node: DictConfig | ListConfig, path: str = "") -> None:
    """Replace interpolations by what they stand for, in place.

    Raises:
        InputError: one that stands for nothing.
    """
    try:
        OmegaConf.resolve(node)
    except OmegaConfBaseException as error:
        # Which of them it is, the message need not say.
        for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
            inner = f"{path}.{key}".lstrip(".") if isinstance(node, DictConfig) else path
            raw = node._get_node(key)
            try:
                value = node[key]
            except OmegaConfBaseException as own:
                text = raw._value() if isinstance(raw, Node) else None
                raise InputError(f"{inner}={text}: {one_line(own)}") from None
            if isinstance(value, DictConfig | ListConfig):
                _resolve(value, inner)
        raise InputError(one_line(error)) from None


def _make_absolute(node: DictConfig | ListConfig, path: str = "") -> None:
    """Replace what names an existing path by the absolute one, under whichever key."""
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        value = node._get_node(key)
        # The parts of a list go under its key.
        inner = f"{path}.{key}".lstrip(".") if isinstance(node, DictConfig) else path
        if isinstance(value, DictConfig | ListConfig):
            if not (value._is_none() or value._is_missing() or value._is_interpolation()):
                _make_absolute(value, inner)
            continue
        text = value._value() if isinstance(value, Node) else None
        if not isinstance(text, str) or "${" in text or str(key).startswith("_"):
            continue
        found = absolute(inner, text)
        if found is not None:
            node[key] = found


def _check_numbers(value: Any, path: str) -> None:
    """Refuse numbers that nothing can mean, wherever they stand.

    Raises:
        InputError: not a number, an infinite one, or an integer that is too large: counts have 32
            bits, seeds have 64.
    """
    if isinstance(value, dict):
        for key, part in value.items():
            _check_numbers(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            _check_numbers(part, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path}={value} must be a finite number")
    elif isinstance(value, int):
        largest = 2**63 - 1 if "seed" in path.rpartition(".")[2] else 2**31 - 1
        if abs(value) > largest:
            raise InputError(f"{path}={value} is too large; valid: at most {largest}")


def _check_groups(cfg: DictConfig) -> None:
    """Every group is chosen and says what to build."""
    for group in (*GROUPS, *PARTS):
        if group not in cfg or group == "teacher":
            continue
        node = cfg[group]
        if node is None:
            if group in (*OPTIONAL_GROUPS, *PARTS):
                continue
            raise InputError(f"{group}=null: choose one of {', '.join(choices(group))}")
        # Callbacks and loggers are dictionaries of nodes by name.
        nodes = {group: node}
        if group in ("callbacks", "logger") and isinstance(node, DictConfig):
            nodes = {f"{group}.{key}": node[key] for key in keys_of(node) if node[key] is not None}
        for path, value in nodes.items():
            if not isinstance(value, DictConfig) or "_target_" not in value:
                found = path if isinstance(value, DictConfig) else f"{path}={value!r}"
                some = f"choose one of {', '.join(choices(group))}, or " if choices(group) else ""
                raise InputError(
                    f"{found} has no _target_ (the class to build); {some}write a configuration "
                    f"file with a _target_, or give {path}.KEY=VALUE to change a part"
                )


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in keys_of(node):
            if not OmegaConf.is_missing(node, key):
                yield from _targets(node[key], f"{path}.{key}" if path else key)
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from _targets(item, f"{path}[{index}]")


def _check_target(path: str, node: DictConfig) -> None:
    target = locate(node["_target_"], path)
    parameters = parameters_of(target)
    names = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = [str(key) for key in node if not str(key).startswith("_")]
    unknown = [key for key in given if key not in names]
    if unknown and not open_ended:
        valid = f"valid for {path}: {', '.join(sorted(names))}"
        if not names:
            valid = f"{target.__name__} takes no keys"
        raise InputError(f"unknown key '{path}.{unknown[0]}'; {valid}")
    unset = [key for key in given if OmegaConf.is_missing(node, key)]
    required = [n for n in names if parameters[n].default is inspect.Parameter.empty]
    if path.startswith("logger."):
        required = [name for name in required if name != "save_dir"]  # the run's folder
    if not node.get("_partial_", False):
        unset += [name for name in required if name not in given]
    if unset:
        raise InputError(f"'{path}.{unset[0]}' must be given: {path}.{unset[0]}=...")
    hints = hints_of(target)
    group = path.partition(".")[0]
    for key in given:
        if key not in hints:
            continue
        try:
            check_type(f"{path}.{key}", node[key], hints[key])
        except InputError as error:
            if not isinstance(node[key], str) or node[key] not in choices(group):
                raise
            raise InputError(
                f"{error}; the {group} of that name is put there by "
                f"+{group}@{path}.{key}={node[key]}"
            ) from None
