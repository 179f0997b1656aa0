"""Drawing samples into a folder, by one process or by several ranks that share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from tinyfusion.conditioning import Conditioning
from tinyfusion.data.adm_batch import write_batch
from tinyfusion.data.sample_store import SampleStore
from tinyfusion.errors import InputError
from tinyfusion.group import ALONE, Group
from tinyfusion.samplers.generate import Drawing

PACKED_FILE = "samples.npz"


def draw_missing(
    store: SampleStore,
    drawing: Drawing,
    missing: list[int],
    group: Group = ALONE,
    show: Callable[[float], None] | None = None,
) -> None:
    """Draw and write what is missing of a store; each rank does its share and waits for all.

    Args:
        store: where images are put.
        drawing: what gives them, in batches of the store's size.
        missing: numbers of the missing batches, the same on every rank.
        group: ranks that share the work.
        show: called on the first rank with the number of images that are there, as it grows; a
            part of one counts, too.

    Raises:
        InputError: too little memory on the device.
        OSError: the disk is full or can't be written; what is there is kept.
        RanksFailedError: another rank has failed; what is there is kept.
    """
    steps = drawing.sampler.num_steps(drawing.process)
    there = store.count - store.images_in(missing)
    wanted = set(missing)
    shards = [s for s in range(store.num_shards) if wanted.intersection(store.batches_of(s))]

    def drawn(done: int) -> None:
        if show is not None:
            show(there + done / steps)

    with group.counting(drawn) as count, _refusing(drawing):

        def draw(batch: int) -> Tensor:
            left = len(drawing.rows(batch)) * steps

            def advance(_: int, state: Tensor) -> None:
                nonlocal left
                done = min(len(state), left)
                left -= done
                count(done)

            images = drawing.draw(batch, advance)
            count(left)  # samplers may take fewer steps than they announce
            return images

        for shard in group.share(shards):
            store.fill(shard, wanted, draw)


@contextmanager
def _refusing(drawing: Drawing) -> Iterator[None]:
    """Raise what the user can mend as an `InputError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(
            f"batch_size={drawing.batch_size} needs more memory than the device has; choose a "
            "smaller one"
        ) from None


def pack(folder: Path, store: SampleStore, conditioning: Conditioning, batch_size: int) -> Path:
    """Write all images of a store into one file, in the layout of ADM's evaluator.

    Args:
        folder: where ``samples.npz`` is written: ``arr_0``, uint8 (N, H, W, C), and what
            `Conditioning.record` gives, such as ``labels``.
        store: the images, none of which is missing.
        conditioning: of the N images.
        batch_size: images held at a time.
    """
    images = store.images()
    arrays = {name: value.numpy() for name, value in conditioning.record().items()}
    batches = images.batches(batch_size)
    return write_batch(folder / PACKED_FILE, len(images), images.shape, batches, arrays)
