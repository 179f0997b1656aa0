"""Which work a command line does: a hash of its resolved configuration and of what it reads.

Left out is what does not change a result (devices, loggers, folders), what the command has no use
for, and every setting that is what its class takes by itself, so that a setting that comes to be
later changes no identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from tinyfusion.checkpoints.locate import resolve
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.files import known_sha256
from tinyfusion.settings.commands import COMMANDS
from tinyfusion.settings.compose import locate, parameters_of

NOT_OF_RESULTS = (
    "output_root", "name", "resume", "logger", "dry_run", "dry_run_probe", "optimized_metric",
    "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.threads",
    "trainer.num_workers", "trainer.progress", "trainer.log_every", "trainer.resume_every",
    "trainer.micro_batch", "trainer.checkpoint_blocks", "trainer.compile",
    "trainer.compile_backend", "callbacks.decision_trace", "callbacks.curves",
    "evaluation.features_folder", "callbacks.evaluate.evaluation.features_folder", "keep_samples",
)  # fmt: skip
"""Settings that change no figure."""

NOT_USED: dict[str, tuple[str, ...]] = {
    "prune": ("sampler", "autoencoder", "training.recovery", "training.pretrain"),
    "run": ("training.pretrain",),
    "evaluate": (),
    "pretrain": ("training.recovery", "training.mask_learning"),
}
"""Settings that a command does not read."""

NOT_USED_IF_DECIDED = (
    "pruner", "selector", "delta", "scheme", "keep", "units", "budget", "training.mask_learning",
)  # fmt: skip
"""Settings that `tinyfusion run` does not read where a decision is given."""

LENGTH = 16
"""Hex digits of an identity."""


def is_of_results(key: str) -> bool:
    """Whether a setting can change a figure.

    Args:
        key: of an override, such as ``logger.wandb.project``.
    """
    parts = key.lstrip("+~").split(".")
    return not any(".".join(parts[: i + 1]) in NOT_OF_RESULTS for i in range(len(parts)))


def identity(command: str, config: Mapping[str, Any], read: Mapping[str, str], seed: int) -> str:
    """Hash of what a work does.

    Args:
        command: the command.
        config: its checked configuration (`settings.composed.composed`).
        read: digests of what it reads, by the text that stands for each in the configuration.
        seed: its seed, whatever the configuration says.
    """
    config = deepcopy(dict(config)) | {"seed": seed}
    for path in NOT_OF_RESULTS + NOT_USED.get(command, ()):
        _drop(config, path)
    if config.get("decision") is not None:
        for path in NOT_USED_IF_DECIDED:
            _drop(config, path)
    if isinstance(config.get("checkpoint"), str) and config["checkpoint"] not in read:
        config["checkpoint"] = digest_of(config["checkpoint"])
    # Longer names first: that of a folder is the beginning of what lies in it.
    read_first = sorted(read.items(), key=lambda pair: -len(pair[0]))
    config = _canonical(config, COMMANDS[command], read_first)
    text = json.dumps([command, config], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def digest_of(checkpoint: str) -> str:
    """Digest of a checkpoint's files; of one that is not here, such as a hub id, its name."""
    try:
        return digest_of_folder(resolve(checkpoint))
    except InputError:
        return checkpoint


def digest_of_folder(path: Path) -> str:
    """Digest of a file, or of the model's files of a folder."""
    if path.is_file():
        return known_sha256(path)[:LENGTH]
    files = sorted(file for file in path.rglob("*") if file.suffix in (".safetensors", ".json"))
    parts = [f"{file.relative_to(path)} {known_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:LENGTH]


def decision_digest(decision: Decision) -> str:
    """Digest of what a decision does to a model and to its recovery, whoever made it."""
    values = decision.to_dict()
    content = {key: values[key] for key in ("kept", "source_depth", "scheme", "removed")}
    content |= {key: values[key] for key in ("replaced", "resized")}
    content["source"] = decision.source_sha256
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:LENGTH]


def _drop(config: Any, path: str) -> None:
    first, _, rest = path.partition(".")
    if isinstance(config, dict) and first in config:
        if rest:
            _drop(config[first], rest)
        else:
            del config[first]


def _canonical(value: Any, kind: Any, read: Sequence[tuple[str, str]]) -> Any:
    """Plain data without what a class takes by itself, and with digests for what is read."""
    if isinstance(value, dict):
        target = value.get("_target_")
        usual = _defaults(target) if isinstance(target, str) else _fields(kind)
        found = {str(key): _canonical(entry, None, read) for key, entry in value.items()}
        return {
            key: entry
            for key, entry in found.items()
            if entry not in (None, {}) and not (key in usual and usual[key] == entry)
        }
    if isinstance(value, list | tuple):
        return [_canonical(entry, None, read) for entry in value]
    if isinstance(value, str):
        for text, digest in read:
            value = value.replace(text, digest)
    return value


@cache
def _defaults(target: str) -> dict[str, Any]:
    """What a class takes for arguments that are not given, as plain data."""
    found = {}
    for name, parameter in parameters_of(locate(target, "")).items():
        if parameter.default is not inspect.Parameter.empty:
            default = parameter.default
            found[name] = list(default) if isinstance(default, tuple) else default
    return found


def _fields(kind: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(kind):
        return {}
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING and field.name != "seed"
    }
