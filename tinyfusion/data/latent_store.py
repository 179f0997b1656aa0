"""Reading a finished store of latents."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyfusion.data.latent_plan import (
    DTYPE,
    INDEX_FILE,
    LABELS_FILE,
    PLAN_FILE,
    VIEWS,
    file_name,
    read_plan,
    size_of,
)
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, sha256_of


class LatentStore:
    """A finished store, memory-mapped shard by shard as it is used.

    Args:
        root: folder of the store.
        mirrors: whether mirrors are needed.

    Attributes:
        plan: what it holds.
        labels: class of every latent, int64, shape (N,).
        counts: latents per shard.

    Raises:
        InputError: not a finished store, a file that is missing or of another size, or a class
            out of range.
    """

    def __init__(self, root: Path, mirrors: bool) -> None:
        self.root = root
        if not (root / INDEX_FILE).is_file():
            begun = (root / PLAN_FILE).is_file()
            hint = "; it is not finished: run its 'tinyfusion encode' again" if begun else ""
            raise InputError(f"data.root={str(root)!r}: no {INDEX_FILE} of latents in it{hint}")
        self.plan, self._index = read_plan(root / INDEX_FILE), _read_index(root / INDEX_FILE)
        if mirrors and not self.plan.mirrors:
            raise InputError(
                f"data.root={str(root)!r} holds no mirrored images; give data.flip=false"
            )
        self.views = self.plan.views if mirrors else VIEWS[:1]
        self.counts = np.array([shard["count"] for shard in self._index["shards"]], dtype=np.int64)
        self._check_sizes()
        self.labels = self._read_labels()
        self._maps: dict[tuple[int, str], np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A process that is started afresh maps the files itself.
        return {**self.__dict__, "_maps": {}}

    def _check_sizes(self) -> None:
        for shard, record in enumerate(self._index["shards"]):
            for view in self.views:
                file, wanted = self.root / file_name(shard, view), record["bytes"][view]
                found = size_of(file)
                if found is None:
                    hint = "; data.flip=false does without mirrors" if view == VIEWS[1] else ""
                    raise InputError(f"latent file {str(file)!r} is missing{hint}")
                if found != wanted:
                    raise InputError(
                        f"latent file {str(file)!r} has {found:,} bytes, {wanted:,} were written"
                    )

    def _read_labels(self) -> torch.Tensor:
        file = self.root / LABELS_FILE
        if not file.is_file():
            raise InputError(f"latent file {str(file)!r} is missing")
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != self._index["labels_sha256"]:
            raise InputError(_damaged(file))
        labels = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False)).long()
        if len(labels) != self.counts.sum():
            raise InputError(
                f"latent file {str(file)!r} has {len(labels):,} labels for "
                f"{self.counts.sum():,} latents"
            )
        check_labels(labels, len(self.plan.classes), str(file))
        return labels

    def verify(self) -> None:
        """Compare the checksum of every file that is used.

        Raises:
            InputError: a file's content is not what was written (the first one is named).
        """
        for shard, record in enumerate(self._index["shards"]):
            for view in self.views:
                file = self.root / file_name(shard, view)
                if sha256_of(file) != record["sha256"][view]:
                    raise InputError(_damaged(file))

    def rows(self, shard: int, view: str) -> np.ndarray:
        """Latents of a shard, float16, shape (n, 2C or C, h, w), memory-mapped.

        Raises:
            InputError: the file's header is damaged.
        """
        found = self._maps.get((shard, view))
        if found is None:
            shape = (int(self.counts[shard]), *self.plan.shape)
            found = self._maps[shard, view] = _map(self.root / file_name(shard, view), shape)
        return found


def _read_index(file: Path) -> dict[str, Any]:
    index = read_json(file, "latent store")
    shards = index.get("shards")
    if not isinstance(index.get("labels_sha256"), str) or not isinstance(shards, list):
        raise InputError(f"{str(file)!r} has no 'shards' or no 'labels_sha256'")
    for shard, record in enumerate(shards):
        if not isinstance(record, dict) or {"count", "bytes", "sha256"} - record.keys():
            raise InputError(f"{str(file)!r}: the entry of shard {shard} is incomplete")
    return index


def _map(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        header = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, SyntaxError):
        raise InputError(_damaged(file)) from None
    if header.shape != shape or header.dtype != DTYPE or np.isfortran(header):
        raise InputError(_damaged(file))
    # numpy keeps a descriptor open per map, and a store has more shards than the usual limit of
    # 1,024; torch closes the file.
    content = torch.from_file(
        str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8
    ).numpy()
    return content[header.offset :].view(DTYPE).reshape(shape)


def check_labels(labels: torch.Tensor, num_classes: int, where: str) -> None:
    """Refuse labels that are no class.

    Raises:
        InputError: a label is out of range (the first one and its position are named).
    """
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        position = int(wrong[0])
        raise InputError(
            f"{where}: label {int(labels[position])} at position {position} is no class; valid: "
            f"0..{num_classes - 1}"
        )


def _damaged(file: Path) -> str:
    # shard-00000.images.npy -> shard-00000.json; labels.npy is made again with the index.
    shard = file.name.split(".")[0]
    redo = INDEX_FILE if file.name == LABELS_FILE else f"{shard}.json and {INDEX_FILE}"
    return (
        f"latent file {str(file)!r} is damaged: its content is not what was written; to make it "
        f"again, delete {redo} and repeat 'tinyfusion encode'"
    )
