"""Folders of runs, of any command and of earlier versions, read into plain records."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tinyfusion.errors import InputError
from tinyfusion.files import read_json
from tinyfusion.report.columns import FIGURES
from tinyfusion.report.runs import BENCHMARK_FILE, DECISION_SEED, Run
from tinyfusion.runtime.folder import COMMAND_FILE, CONFIG_FILE, FINISHED_FILE, LOG_FILE
from tinyfusion.tracking.keys import METRICS_FILE

TIMES_FILE = "times.json"
DECIDING = ("scheme", "keep", "units", "budget", "pruner", "selector", "delta")
"""Keys of a configuration that a decision comes from, beside ``training.mask_learning``."""


def read_run(folder: Path | str) -> Run:
    """Read the folder of one run.

    Args:
        folder: the folder; of earlier versions it may hold no more than ``metrics.json``.

    Raises:
        InputError: it holds no run, or a file of it can't be read.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise InputError(
            f"{folder} holds no run: it has none of {CONFIG_FILE}, {METRICS_FILE}, {BENCHMARK_FILE}"
        )
    metrics = _json(folder / METRICS_FILE)
    end = _json(folder / FINISHED_FILE)
    config = _decided(_config(folder / CONFIG_FILE), folder / "decision.json")
    models = metrics.get("models") or {
        name: metrics[name] for name in ("model", "images") if isinstance(metrics.get(name), dict)
    }
    _check(folder / METRICS_FILE, models, metrics)
    # Versions before there was a finished.json wrote their figures last of all.
    done = bool(end) or bool(metrics) or (folder / BENCHMARK_FILE).is_file()
    reason, failed = ("", False) if done else _last_words(folder / LOG_FILE)
    return Run(
        folder=folder,
        command=str(config.get("command", "")) or _command_of(models),
        state="finished" if done else "failed" if failed else "unfinished",
        reason=reason,
        command_line=_text(folder / COMMAND_FILE).strip(),
        config=config,
        models=models,
        decision=metrics.get("decision") or {},
        protocol=metrics.get("protocol") or {},
        floor=metrics.get("floor") or {},
        times=_json(folder / TIMES_FILE),
        seconds=end.get("seconds"),
        finished=end.get("finished", ""),
        version=end.get("version", ""),
        libraries=end.get("libraries", {}),
    )


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    names = (CONFIG_FILE, METRICS_FILE, BENCHMARK_FILE)
    return any((folder / name).is_file() for name in names)


def find_runs(folders: Iterable[Path | str]) -> list[Run]:
    """All runs in and below some folders, in the order of their names.

    Folders within a run's own are a part of it.

    Raises:
        InputError: a folder does not exist, there is no run below it, or one can't be read.
    """
    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; give folders of runs or sweeps")
        below = list(_below(folder))
        if not below:
            raise InputError(f"there is no run in {folder} or below it")
        found |= {path.resolve(): read_run(path) for path in below}
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    for path, names, _ in os.walk(folder):
        if is_run(Path(path)):
            names.clear()
            yield Path(path)
        names[:] = sorted(name for name in names if not name.startswith("."))


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = read_json(file, "record of a run")
    if not isinstance(content, dict):
        raise InputError(f"{file} is no record of a run: it is not a JSON object")
    return content


def _config(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(_text(file)) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{file} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is no configuration: it holds no keys")
    return content


def _check(file: Path, models: Any, metrics: Mapping[str, Any]) -> None:
    if not isinstance(models, dict) or not all(isinstance(own, dict) for own in models.values()):
        raise InputError(f"{file} is no record of a run: models holds no figures by model")
    for name, own in models.items():
        wrong = [key for key in FIGURES if not isinstance(own.get(key), int | float | None)]
        if wrong:
            told = f"{name}.{wrong[0]} is {own[wrong[0]]!r}"
            raise InputError(f"{file} is no record of a run: {told}; valid: a number")
    for key in ("decision", "protocol", "floor"):
        if not isinstance(metrics.get(key) or {}, dict):
            raise InputError(f"{file} is no record of a run: {key} holds no keys")


def _decided(config: dict[str, Any], decision: Path) -> dict[str, Any]:
    """A configuration with the keys that made its decision, if that came from a file."""
    if not config.get("decision"):
        return config
    made = _json(decision).get("config")
    if not isinstance(made, dict):
        return config
    training = dict(config.get("training") or {})
    if "mask_learning" in (made.get("training") or {}):
        training["mask_learning"] = made["training"]["mask_learning"]
    seed = None if made.get("seed") == config.get("seed") else made.get("seed")
    keys = {key: made[key] for key in DECIDING if key in made}
    return {**config, **keys, "training": training, "decision": None, DECISION_SEED: seed}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} can't be read: {error}") from None


def _command_of(models: Mapping[str, Any]) -> str:
    """The command of a run that did not record it, by the models it scored."""
    if "recovered" in models:
        return "run" if "pruned" in models else "recover"
    return "prune" if "pruned" in models else ""


def _last_words(log: Path) -> tuple[str, bool]:
    """The last line of a log, and whether it tells of a failure."""
    lines = [line.strip() for line in _text(log).splitlines() if line.strip()]
    # Each begins with date, time and level.
    last = lines[-1].split(" ", 3)[-1] if lines else ""
    return last, any(" stopped; continue with " in line for line in lines[-3:])
