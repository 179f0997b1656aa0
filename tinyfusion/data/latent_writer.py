"""Writing a store of latents shard by shard; nothing in it depends on who wrote it or when."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from tinyfusion.data.latent_plan import (
    DTYPE,
    FORMAT,
    INDEX_FILE,
    LABELS_FILE,
    PLAN_FILE,
    VERSION,
    StorePlan,
    file_name,
    npy_bytes,
    read_plan,
    record_name,
    size_of,
)
from tinyfusion.errors import InputError, refused_by_system
from tinyfusion.files import read_json, target_of, write_bytes, write_json

_NAMES = {
    "num_files": "number of images",
    "image_size": "data.size",
    "scale": "autoencoder's scaling_factor",
    "weights": "SHA-256 of the autoencoder's weights",
    "kind": "stored values",
}
"""Names of a plan's fields in messages."""


def begin(root: Path, plan: StorePlan) -> None:
    """Make the folder of a store and note the plan, or check that a store begun has the same.

    Raises:
        InputError: the folder holds something else or a store of another plan, or can't be made.
    """
    file = root / PLAN_FILE
    if not file.is_file():
        try:
            root.mkdir(parents=True, exist_ok=True)
            if any(not entry.name.startswith(".") for entry in root.iterdir()):
                raise InputError(f"store={root}: is not empty and holds no {PLAN_FILE} of a store")
            write_json(file, {"format": FORMAT, "version": VERSION, **asdict(plan)})
        except OSError as error:
            raise InputError(f"store= can't be written: {refused_by_system(error)}") from None
        return
    begun = read_plan(file)
    for field in fields(StorePlan):
        # The same autoencoder may lie elsewhere; its weights and scale are compared.
        old, new = getattr(begun, field.name), getattr(plan, field.name)
        if field.name == "autoencoder" or old == new:
            continue
        changed = f"with {_NAMES.get(field.name, field.name)}={old}, now it is {new}"
        if field.name in ("listing", "classes"):
            changed = "from other files: names or classes of the images differ"
        raise InputError(
            f"store={root} was begun {changed}; give the same images and settings, or another "
            "store="
        )


def write_shard(
    root: Path,
    shard: int,
    latents: Mapping[str, np.ndarray],
    labels: Sequence[int],
    files: Sequence[str],
    skipped: Sequence[Mapping[str, str]],
) -> None:
    """Write a complete shard; it counts from the moment its JSON file has its name.

    Args:
        root: folder of the store.
        shard: number of the shard.
        latents: for each view float16, shape (n, 2C or C, h, w).
        labels: classes, n of them.
        files: relative paths of the image files, n of them.
        skipped: ``file`` and ``reason`` of those left out.

    Raises:
        OSError: the disk is full or can't be written; no torn file is left.
    """
    hashes, sizes = {}, {}
    for view, array in latents.items():
        assert array.dtype == DTYPE and len(array) == len(labels) == len(files)
        content = npy_bytes(array)
        hashes[view], sizes[view] = hashlib.sha256(content).hexdigest(), len(content)
        # Not np.save, whose message of a full disk has no reason in it.
        write_bytes(root / file_name(shard, view), content)
    record = {
        "count": len(labels),
        "bytes": sizes,
        "sha256": hashes,
        "labels": list(labels),
        "files": list(files),
        "skipped": list(skipped),
    }
    write_json(root / record_name(shard), record)


def is_complete(root: Path, plan: StorePlan, shard: int) -> bool:
    """Whether a shard is all there, judged by its JSON file and the sizes of the others."""
    record = root / record_name(shard)
    if not record.is_file():
        return False
    sizes = read_json(record, "latent store")["bytes"]
    return all(size_of(root / file_name(shard, view)) == sizes[view] for view in plan.views)


def remove_torn(root: Path, shards: Sequence[int], alone: bool) -> None:
    """Remove what a killed process left under temporary names.

    Args:
        root: folder of the store.
        shards: those that no other process works on.
        alone: whether no other process works on the store at all.
    """
    own = {f"shard-{shard:05d}" for shard in shards}
    if alone:
        own |= {Path(name).stem for name in (PLAN_FILE, INDEX_FILE, LABELS_FILE)}
    for entry in os.scandir(root):
        target = target_of(entry.name)
        if target and target.partition(".")[0] in own:
            Path(entry.path).unlink(missing_ok=True)


def finish(root: Path, plan: StorePlan) -> dict[str, Any]:
    """Write labels and index of a store whose shards are all complete; the same at every call.

    Returns:
        the index.
    """
    shards, labels, skipped = [], [], []
    for shard in range(plan.num_shards):
        record = read_json(root / record_name(shard), "latent store")
        shards.append({key: record[key] for key in ("count", "bytes", "sha256")})
        labels += record["labels"]
        skipped += record["skipped"]
    content = npy_bytes(np.array(labels, dtype=np.int32))
    write_bytes(root / LABELS_FILE, content)
    index = {
        **read_json(root / PLAN_FILE, "latent store"),
        "dtype": DTYPE.name,
        "count": len(labels),
        "labels_sha256": hashlib.sha256(content).hexdigest(),
        "skipped": skipped,
        "shards": shards,
    }
    write_json(root / INDEX_FILE, index)
    return index
