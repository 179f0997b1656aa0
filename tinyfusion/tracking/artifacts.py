"""What a run took and made, as its folder and configuration say: models, decisions, samples.

An artifact is named by its content, so that one run's product is another run's input wherever the
two ran: ``model-<sha256>`` by its weights, ``decision-<sha256>`` by its file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyfusion.checkpoints import weights_sha256
from tinyfusion.checkpoints.layout import CONFIG_FILE
from tinyfusion.checkpoints.locate import resolve
from tinyfusion.decision_files import DECISION_FILE, is_decision
from tinyfusion.files import read_json, sha256_of
from tinyfusion.tracking.keys import METRICS_FILE, flat_scores

MODELS = {
    "pruned": "pruned",
    "recovered": "recovered",
    "recovered_live": "recovered_live",
    "recover/best": "recovered_best",
    "model": "model",
}
"""Folders of models in a run's folder, and what trackers call them."""

SAMPLES_FILE, TRACE_FILE = "samples.png", "decision_trace.json"


@dataclass(frozen=True)
class Artifact:
    """A product of a run, named by its content.

    Attributes:
        kind: ``model``, ``decision`` or ``samples``.
        sha256: of the weights, or of the file.
        metadata: what is known of it, as plain data.
        files: small files that are always kept.
        large: weights, kept only where that is asked for.
        aliases: what it is to the run, such as ``pruned`` and ``best``.
    """

    kind: str
    sha256: str
    metadata: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    large: tuple[Path, ...] = ()
    aliases: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """Its name in a tracker."""
        return f"{self.kind}-{self.sha256[:16]}"


def model(path: Path | str, *aliases: str) -> Artifact:
    """A checkpoint as an artifact.

    Args:
        path: as ``checkpoint=`` takes it.
        aliases: what it is to the run.

    Raises:
        InputError: there is no such checkpoint.
    """
    found = resolve(path)
    weights = [found] if found.is_file() else sorted(found.rglob("*.safetensors"))
    sha256 = weights_sha256(path)
    metadata = {
        "sha256": sha256,
        "bytes": sum(file.stat().st_size for file in weights),
        "path": str(found),
    }
    return Artifact("model", sha256, metadata, (), tuple(weights), aliases)


def decision(file: Path, *aliases: str) -> Artifact:
    """A decision's file as an artifact."""
    sha256 = sha256_of(file)
    metadata = {"sha256": sha256, "path": str(file)} | _facts(read_json(file, "decision"))
    return Artifact("decision", sha256, metadata, (file,), (), aliases)


def used(config: Mapping[str, Any]) -> Iterator[Artifact]:
    """What a run took: its checkpoint, a teacher of a file of its own, and a given decision.

    Args:
        config: its configuration as plain data.

    Raises:
        InputError: one of them is not there any more.
    """
    teacher = (config.get("teacher") or {}).get("path")
    if config.get("checkpoint") and config.get("images") is None:
        yield model(config["checkpoint"], "source")
    if teacher not in (None, "source", config.get("checkpoint")):
        yield model(teacher, "teacher")
    if config.get("decision"):
        file = Path(config["decision"])
        yield decision(file / DECISION_FILE if file.is_dir() else file)


def made(folder: Path, config: Mapping[str, Any]) -> Iterator[Artifact]:
    """What a run left in its folder.

    The model of lowest FID among those it scored after training is ``best``; where nothing was
    scored, none is.

    Args:
        folder: the run's folder.
        config: its configuration as plain data.
    """
    if (folder / DECISION_FILE).is_file() and not config.get("decision"):
        yield decision(folder / DECISION_FILE)
    metrics = folder / METRICS_FILE
    scores = flat_scores(read_json(metrics, "metrics")) if metrics.is_file() else {}
    fids = {name: scores.get(f"{name}/fid", float("inf")) for name in MODELS.values()}
    trained = [name for name in fids if name != "pruned" and fids[name] < float("inf")]
    best = min(trained, key=fids.__getitem__, default=None)
    for place, name in MODELS.items():
        if (folder / place / CONFIG_FILE).is_file():
            yield model(folder / place, name, *(["best"] if name == best else []))
    files = tuple(f for f in (folder / SAMPLES_FILE, metrics) if f.is_file())
    if files and any(key.endswith("/fid") for key in scores):
        yield Artifact("samples", sha256_of(files[0]), {"path": str(folder)}, files)


def facts(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What was decided: method, kept blocks, budget and the source's hash; empty if nothing.

    Of a run that was given a model that had been cut, such as one that only scores it, what is
    known of that model.

    Args:
        folder: the run's folder.
        config: its configuration as plain data.

    Raises:
        InputError: a file can't be read.
    """
    if (folder / DECISION_FILE).is_file():
        return _facts(read_json(folder / DECISION_FILE, "decision"))
    checkpoint = config.get("checkpoint")
    return _of_model(resolve(checkpoint)) if checkpoint and not config.get("images") else {}


def _of_model(path: Path) -> dict[str, Any]:
    """What was decided of a model, by its folder, the one above, or the model it came from."""
    if not (path / CONFIG_FILE).is_file():
        return {}
    config = read_json(path / CONFIG_FILE, "config")
    kept, record = config.get("kept_from"), config.get("provenance") or {}
    if kept is None:
        return {}
    beside = path.parent / DECISION_FILE
    if beside.is_file() and (found := _facts(read_json(beside, "decision"))).get("kept") == kept:
        return found
    if "decision" in record:
        return record["decision"] | {"source_sha256": record.get("source_sha256")}
    earlier = record.get("recovered_from")  # a path, as a model of another kind is whole
    return (_of_model(Path(earlier)) if earlier else {}) or {"kept": kept}


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    names = ("method", "kept", "source_depth", "scheme", "budget", "source_sha256", "seed")
    found = {name: content.get(name) for name in names if is_decision(content)}
    # What each unit costs is evidence, which the file holds.
    budget = found.get("budget") or {}
    limits = {k: v for k, v in budget.items() if k not in ("costs", "measured")}
    if budget:
        found["budget"] = limits
    return found


def gate_curves(folder: Path) -> Iterator[tuple[str, list[list[Any]]]]:
    """Of every mask learning in a run's folder, the probability of each unit to stay by step.

    Yields:
        The phase's folder in the run's, and rows of step, unit and probability: of at most 100
        steps, evenly spaced.
    """
    for file in sorted(folder.glob(f"prune/**/{TRACE_FILE}")):
        records = read_json(file, "trace")
        records = records[:: max(1, -(-len(records) // 100))]
        rows = [
            [record["step"], unit, share]
            for record in records
            for unit, share in enumerate(record["inclusion"])
        ]
        yield file.parent.relative_to(folder).as_posix(), rows
