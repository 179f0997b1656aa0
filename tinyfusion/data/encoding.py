"""From an image folder to the shards of a latent store.

Shape suffixes: B batch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.data.imagefolder import ImageFolder
from tinyfusion.data.latent_plan import DTYPE, StorePlan, listing_hash
from tinyfusion.data.latent_writer import write_shard
from tinyfusion.data.pictures import UndecodableImageError
from tinyfusion.errors import InputError
from tinyfusion.notices import tally

UNDECODABLE = "image(s) left out, as they can't be decoded"
"""What is tallied of those; each is an item by its path in the image folder."""

SKIP = "skip_undecodable=true leaves such images out"

AHEAD = 2
"""Batches that are decoded while one is encoded."""


def plan_store(
    images: ImageFolder, autoencoder: Autoencoder, moments: bool, mirrors: bool, shard_size: int
) -> StorePlan:
    """What a store of these images will hold.

    Args:
        images: the image folder; all its images, held-out ones included.
        autoencoder: encodes them.
        moments: store mean and log-variance of the posterior, else the mean.
        mirrors: encode the mirrored images, too.
        shard_size: images per shard.

    Raises:
        InputError: images that the autoencoder does not take, or an empty shard.
    """
    if shard_size < 1:
        raise InputError(f"shard_size={shard_size} must be at least 1")
    wanted = autoencoder.config.get("in_channels", 3)
    if images.channels != wanted:
        raise InputError(
            f"data.channels={images.channels}: the autoencoder takes images of {wanted} channels"
        )
    if images.size % autoencoder.factor:
        raise InputError(
            f"data.size={images.size} must be a multiple of {autoencoder.factor}, the pixels per "
            "latent cell of the autoencoder"
        )
    return StorePlan(
        num_files=len(images.files),
        listing=listing_hash(relative_names(images), images.labels.tolist()),
        classes=images.classes,
        image_size=images.size,
        channels=autoencoder.channels,
        size=images.size // autoencoder.factor,
        scale=autoencoder.scale,
        autoencoder=autoencoder.path,
        weights=autoencoder.weights_hash,
        kind="moments" if moments else "mean",
        mirrors=mirrors,
        shard_size=shard_size,
    )


def relative_names(images: ImageFolder) -> list[str]:
    """Paths of the image files inside their folder, in order."""
    start = len(os.path.join(images.root, ""))
    return [file[start:] for file in images.files]


class _Decoded(NamedTuple):
    """A batch of one shard, decoded.

    Attributes:
        shard: its shard.
        files: numbers of its image files, left-out ones excluded.
        pixels: uint8 0..255, shape (B, H, W, C); of no image: ``None``.
        skipped: what can't be decoded: number of the file and reason.
        size: number of its image files, left-out ones included.
        last: whether it is the shard's last batch.
    """

    shard: int
    files: list[int]
    pixels: Tensor | None
    skipped: list[tuple[int, str]]
    size: int
    last: bool


def encode_shards(
    images: ImageFolder,
    autoencoder: Autoencoder,
    plan: StorePlan,
    root: Path,
    shards: Sequence[int],
    skip_undecodable: bool = False,
    threads: int = 1,
    report: Callable[[int], None] = lambda images: None,
) -> None:
    """Encode shards one after the other.

    Batches never reach over the end of a shard, so a shard's content doesn't depend on what was
    encoded before it.

    Args:
        images: the image folder.
        autoencoder: encodes, on its device, in batches of its ``batch_size``.
        plan: plan of the store.
        root: folder of the store.
        shards: numbers of the shards.
        skip_undecodable: leave out images that can't be decoded, and note them in the shard.
        threads: threads that decode images.
        report: called with the number of images after each batch.

    Raises:
        InputError: an undecodable image, latents that are not finite or too large for float16.
        OSError: the store can't be written.
    """
    names = relative_names(images)
    latents: dict[str, list[np.ndarray]] = {view: [] for view in plan.views}
    files: list[int] = []
    skipped: list[dict[str, str]] = []
    for batch in _decoded(images, plan, shards, autoencoder.batch_size, skip_undecodable, threads):
        if batch.pixels is not None:
            pixels = batch.pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
            for view, parts in latents.items():
                seen = pixels.flip(3) if view == "mirrors" else pixels
                found = autoencoder.moments(seen)[:, : plan.shape[0]].cpu()
                parts.append(_to_half(found, [images.files[number] for number in batch.files]))
        files += batch.files
        for number, reason in batch.skipped:
            skipped.append({"file": names[number], "reason": reason})
            tally(UNDECODABLE, detail=f"{names[number]}: {reason}", item=names[number])
        if batch.last:
            empty = np.empty((0, *plan.shape), DTYPE)
            write_shard(
                root,
                batch.shard,
                {view: np.concatenate([empty, *parts]) for view, parts in latents.items()},
                images.labels[files].tolist(),
                [names[number] for number in files],
                skipped,
            )
            latents = {view: [] for view in plan.views}
            files, skipped = [], []
        report(batch.size)


def _to_half(latents: Tensor, files: Sequence[str]) -> np.ndarray:
    half = latents.half()
    good_B = torch.isfinite(half).flatten(1).all(1)
    if not good_B.all():
        row = int((~good_B).nonzero()[0])
        largest = float(latents[row].abs().max())
        what = f"a value of {largest:.6g}, beyond float16's 65504"
        if not torch.isfinite(latents[row]).all():
            what = "values that are not finite"
        raise InputError(
            f"the latent of image file {files[row]!r} has {what}; is it the right autoencoder?"
        )
    return half.numpy()


def _decoded(
    images: ImageFolder,
    plan: StorePlan,
    shards: Sequence[int],
    batch_size: int,
    skip: bool,
    threads: int,
) -> Iterator[_Decoded]:
    """Batches in order; the next ones are decoded while one is in use."""
    waiting: deque[tuple[int, Sequence[int], bool, list[Future[np.ndarray]]]] = deque()
    batches = _batches(plan, shards, batch_size)
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            while len(waiting) <= AHEAD and (following := next(batches, None)) is not None:
                shard, numbers, last = following
                work = [pool.submit(images.decode, images.files[number]) for number in numbers]
                waiting.append((shard, numbers, last, work))
            if not waiting:
                return
            yield _gathered(*waiting.popleft(), skip)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _batches(
    plan: StorePlan, shards: Iterable[int], batch_size: int
) -> Iterator[tuple[int, Sequence[int], bool]]:
    """Shard, numbers of the files, and whether it is the shard's last batch."""
    for shard in shards:
        numbers = plan.files_of(shard)
        for start in range(0, len(numbers), batch_size):
            yield shard, numbers[start : start + batch_size], start + batch_size >= len(numbers)


def _gathered(
    shard: int, numbers: Sequence[int], last: bool, work: Sequence[Future[np.ndarray]], skip: bool
) -> _Decoded:
    files, pixels, skipped = [], [], []
    for number, future in zip(numbers, work, strict=True):
        try:
            pixels.append(future.result())
            files.append(number)
        except UndecodableImageError as error:
            if not skip:
                raise InputError(f"{error}; {SKIP}") from None
            skipped.append((number, error.reason))
    stacked = torch.from_numpy(np.stack(pixels)) if pixels else None
    return _Decoded(shard, files, stacked, skipped, len(numbers), last)
