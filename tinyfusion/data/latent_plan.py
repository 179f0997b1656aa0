"""What a store of latents is planned to hold, and how its files are called.

Shard k of a store holds the images ``[k * shard_size, ...)`` of the file listing as
``shard-00000.images.npy`` and, in a file of its own that may be left out or deleted, their
mirrors as ``shard-00000.mirrors.npy``; ``shard-00000.json``, written last, says that the shard is
complete, with checksums, labels and file names. ``index.json`` and ``labels.npy`` are written
when all shards are complete and are all that is read besides the latents.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from tinyfusion.errors import InputError
from tinyfusion.files import read_json

FORMAT, VERSION = "tinyfusion-latents", 1
PLAN_FILE, INDEX_FILE, LABELS_FILE = "plan.json", "index.json", "labels.npy"
DTYPE = np.dtype(np.float16)
VIEWS = ("images", "mirrors")
RECORD_BYTES = 60
"""About what the name and the label of one image take in its shard's JSON file."""


@dataclass(frozen=True)
class StorePlan:
    """What a store will hold; part of its index.

    Attributes:
        num_files: image files, those that will turn out undecodable included.
        listing: SHA-256 of their relative paths and classes.
        classes: names of the classes.
        image_size: height and width of the cropped images in pixels.
        channels: latent channels.
        size: height and width in latent cells.
        scale: what latents are multiplied by for the diffusion model; they are stored unscaled.
        autoencoder: path or hub id of the autoencoder.
        weights: SHA-256 of its weights.
        kind: ``moments`` (mean, then log-variance of the posterior) or ``mean``.
        mirrors: whether the mirrored images are encoded, too.
        shard_size: image files per shard.
    """

    num_files: int
    listing: str
    classes: list[str]
    image_size: int
    channels: int
    size: int
    scale: float
    autoencoder: str
    weights: str
    kind: str
    mirrors: bool
    shard_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of what is stored of one image: (2C or C, h, w)."""
        return (self.channels * (2 if self.kind == "moments" else 1), self.size, self.size)

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's latent, without its mirror's."""
        return int(np.prod(self.shape)) * DTYPE.itemsize

    @property
    def views(self) -> tuple[str, ...]:
        """What there is a file of for every shard."""
        return VIEWS if self.mirrors else VIEWS[:1]

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_files // self.shard_size)

    def files_of(self, shard: int) -> range:
        """Numbers of the image files of a shard."""
        return range(self.num_files)[shard * self.shard_size :][: self.shard_size]

    def bytes_of(self, num_files: int) -> int:
        """Bytes on disk for so many image files, mirrors included."""
        return num_files * (self.row_bytes * len(self.views) + RECORD_BYTES)


def listing_hash(files: Sequence[str], labels: Sequence[int]) -> str:
    """SHA-256 of relative paths and labels, in order."""
    digest = hashlib.sha256()
    for file, label in zip(files, labels, strict=True):
        digest.update(f"{label}\t{file}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def file_name(shard: int, view: str) -> str:
    """Name of a shard's file of one view."""
    return f"shard-{shard:05d}.{view}.npy"


def record_name(shard: int) -> str:
    """Name of the file that says that a shard is complete."""
    return f"shard-{shard:05d}.json"


def size_of(file: Path) -> int | None:
    """Bytes of a file; ``None`` if there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None


def npy_bytes(array: np.ndarray) -> bytes:
    """The content of an .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_plan(file: Path) -> StorePlan:
    """The plan that a store's plan or index file holds.

    Raises:
        InputError: the file is missing or not of this format.
    """
    found = read_json(file, "latent store")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{str(file)!r} is not of the format {FORMAT!r}")
    if found.get("version") != VERSION:
        raise InputError(
            f"{str(file)!r} is of version {found.get('version')!r}; this program reads {VERSION}"
        )
    missing = [field.name for field in fields(StorePlan) if field.name not in found]
    if missing:
        raise InputError(f"{str(file)!r} has no {missing[0]!r}")
    return StorePlan(**{field.name: found[field.name] for field in fields(StorePlan)})
