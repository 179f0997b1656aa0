"""Reading what an offline W&B run wrote: a LevelDB log of protobuf records."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK, PREFIX = 7, 32768, 7
FULL, FIRST, LAST = 1, 2, 4


def records(file: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file in order (``wandb_internal.proto``)."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = HEADER, b""
    while at + PREFIX <= len(data):
        if BLOCK - at % BLOCK < PREFIX:  # a block's end is padded where no prefix fits
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + PREFIX])
        body = data[at + PREFIX : at + PREFIX + length]
        at += PREFIX + length
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


class OfflineRun:
    """What the only offline run below a folder holds.

    Attributes:
        run: how it began: group, tags, job type, notes.
        config: by key, also what was added later.
        summary: last value by key.
        history: rows in order.
        metrics: definitions by name.
        artifacts: records in order; ``use_after_commit`` tells the used from the made ones.
    """

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.artifacts: list[Any] = []
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= _values(record.run.config.update)
            elif kind == "config":
                self.config |= _values(record.config.update)
            elif kind == "summary":
                self.summary |= _values(record.summary.update)
            elif kind == "history":
                self.history.append(_values(record.history.item))
            elif kind == "metric":
                self.metrics[record.metric.name or record.metric.glob_name] = record.metric
            elif kind == "artifact":
                self.artifacts.append(record.artifact)

    def used(self) -> list[str]:
        """Names of the artifacts that it took."""
        return [a.name for a in self.artifacts if a.use_after_commit]

    def made(self, kind: str) -> list[Any]:
        """Artifacts of a type that it made."""
        return [a for a in self.artifacts if a.type == kind and not a.use_after_commit]


def _values(items: Any) -> dict[str, Any]:
    return {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
