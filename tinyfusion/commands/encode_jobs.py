"""The processes of `tinyfusion encode`, and what they say while they work."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.data.encoding import encode_shards
from tinyfusion.data.imagefolder import ImageFolder
from tinyfusion.data.latent_plan import Plan
from tinyfusion.data.latent_writer import is_complete
from tinyfusion.errors import InputError
from tinyfusion.progress import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What one process encodes; see `encode_shards`."""

    images: ImageFolder
    autoencoder: Autoencoder
    plan: Plan
    root: Path
    shards: list[int]
    skip_undecodable: bool
    decoders: int
    device: torch.device
    threads: int | None

    def __call__(self, report: Callable[[int], None]) -> None:
        """Encode in this process.

        Args:
            report: called with the number of images after each batch.

        Raises:
            InputError: what `encode_shards` refuses, a full disk, or too little memory.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        try:
            encode_shards(
                self.images,
                self.autoencoder.to(self.device),
                self.plan,
                self.root,
                self.shards,
                self.skip_undecodable,
                self.decoders,
                report,
            )
        except OSError as error:
            raise InputError(self._stopped(error.strerror or str(error))) from None
        except torch.OutOfMemoryError:
            raise InputError(
                f"autoencoder.batch_size={self.autoencoder.batch_size} needs more memory than "
                f"{self.device} has; choose a smaller one and start again: finished shards are kept"
            ) from None

    def _stopped(self, reason: str) -> str:
        shards = range(self.plan.num_shards)
        done = [shard for shard in shards if is_complete(self.root, self.plan, shard)]
        images = sum(len(self.plan.files_of(shard)) for shard in done)
        return (
            f"store={self.root} can't be written: {reason}; {images:,} of "
            f"{self.plan.num_files:,} images are stored ({len(done)} of {len(shards)} shards). "
            "Make room and start the same command again: it goes on from there"
        )


def run_jobs(jobs: Sequence[Job], progress: Progress) -> None:
    """Do the jobs: one in this process, several in processes of their own.

    Raises:
        InputError: the first refusal of any job; the others are stopped.
        RuntimeError: a process ended without a word, such as for lack of memory.
    """
    if len(jobs) == 1:
        jobs[0](progress)
        return
    # Not forked: a CUDA context and torch's threads don't survive it.
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    workers = [
        context.Process(target=_work, args=(job, messages), daemon=True)
        for job in jobs
        if job.shards
    ]
    try:
        for worker in workers:
            worker.start()
        _follow(workers, messages, progress)
    finally:
        # What is not finished is under a temporary name and is removed at the next start.
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _follow(workers: Sequence[Any], messages: Any, progress: Progress) -> None:
    working = len(workers)
    while working:
        try:
            kind, value = messages.get(timeout=1.0)
        except queue.Empty:
            for worker in workers:
                if worker.exitcode not in (None, 0):
                    raise RuntimeError(
                        f"a process that encodes ended with status {worker.exitcode}; finished "
                        "shards are kept: start the same command again"
                    ) from None
            continue
        if kind == "refused":
            raise InputError(value)
        if kind == "images":
            progress(value)
        else:
            working -= 1


def _work(job: Job, messages: Any) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def report(images: int) -> None:
        if not parent.is_alive():
            os._exit(1)
        messages.put(("images", images))

    try:
        job(report)
    except InputError as error:
        messages.put(("refused", str(error)))
    else:
        messages.put(("done", None))
