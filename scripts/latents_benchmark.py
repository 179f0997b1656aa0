"""How fast latents are loaded: whole batches, warm cache, the posterior draw not counted.

    python scripts/latents_benchmark.py [--images 20000] [--batches 120] [--store FOLDER]

Makes a store of random latents (4x32x32, moments and mirrors: 655 MB for 20,000 images) unless a
store is given, and times the loader that training uses.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from tinyfusion.data.datamodule import Batch, SampleKey, TrainingData
from tinyfusion.data.latent_plan import VIEWS, StorePlan
from tinyfusion.data.latent_writer import begin, finish, write_shard
from tinyfusion.data.latents import Latents
from tinyfusion.data.source import split_order
from tinyfusion.errors import InputError

BATCH = 256
WORKERS = (0, 2)


def make_store(root: Path, images: int, shard_size: int = 1000) -> None:
    """Write a store of random latents of 1,000 classes."""
    plan = StorePlan(
        num_files=images,
        listing="",
        classes=[f"{number:03d}" for number in range(1000)],
        image_size=256,
        channels=4,
        size=32,
        scale=0.18215,
        autoencoder="none",
        weights="",
        kind="moments",
        mirrors=True,
        shard_size=shard_size,
    )
    begin(root, plan)
    draws = np.random.default_rng(0)
    for shard in range(plan.num_shards):
        numbers = plan.files_of(shard)
        shape = (len(numbers), *plan.shape)
        latents = {view: draws.standard_normal(shape, np.float32).astype("f2") for view in VIEWS}
        labels = [number % 1000 for number in numbers]
        write_shard(root, shard, latents, labels, [f"{number}.png" for number in numbers], [])
    finish(root, plan)


class InOrder:
    """Batches of the stored order instead of a shuffled one, for comparison."""

    def __init__(self, images: int, batches: int) -> None:
        # `fetch` counts through a shuffled split; undo it.
        self.order = split_order(images, 0)[0].argsort().tolist()
        self.batches = batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        following = itertools.cycle(self.order)
        for step in range(self.batches):
            yield [(step, row, next(following)) for row in range(BATCH)]


def loader(
    source: Latents, batches: int, workers: int, shuffled: bool
) -> DataLoader[Batch | InputError]:
    """The loader of training, in its own order or in the stored one."""
    data = TrainingData(source, 0, "benchmark", batches, BATCH, num_workers=workers)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    found = data.train_dataloader()
    if shuffled:
        return found
    in_order = InOrder(len(source), batches)
    return DataLoader(
        found.dataset, batch_sampler=in_order, collate_fn=found.collate_fn, num_workers=workers
    )


def speed(source: Latents, batches: int, workers: int, shuffled: bool) -> float:
    """Latents per second of one pass, from the first batch on."""
    iterator = iter(loader(source, batches, workers, shuffled))
    next(iterator)
    began, count = time.perf_counter(), 0
    for batch in iterator:
        assert isinstance(batch, Batch) and len(batch.images) == BATCH
        count += len(batch.images)
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=120, help="batches of 256 per run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--store", type=Path, help="an existing store of latents")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.store or Path(temporary)
        if arguments.store is None:
            make_store(root, arguments.images)
        source = Latents(root)
        for file in sorted(root.glob("*.npy")):
            file.read_bytes()  # warms the cache
        shape = "x".join(map(str, (2 * source.channels, source.size, source.size)))
        print(f"{len(source):,} images, {shape} float16, batches of {BATCH}, on 2 cores")
        for workers, shuffled in itertools.product(WORKERS, (True, False)):
            runs = [
                speed(source, arguments.batches, workers, shuffled)
                for _ in range(arguments.repeats)
            ]
            order = "shuffled" if shuffled else "in order"
            print(
                f"workers {workers}, {order:<8}: {statistics.median(runs):9,.0f} latents/s "
                f"(median of {len(runs)}; {min(runs):,.0f} to {max(runs):,.0f})"
            )


if __name__ == "__main__":
    main()
