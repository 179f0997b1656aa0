"""Drawing samples into a folder, by one process or by several that share them."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from tinyfusion.conditioning import Conditioning
from tinyfusion.data.adm_batch import write_batch
from tinyfusion.data.sample_store import SampleStore
from tinyfusion.errors import InputError
from tinyfusion.ranks import rank
from tinyfusion.runtime.progress import ImageProgress
from tinyfusion.samplers.generate import Drawing

PACKED_FILE = "samples.npz"

_LOOK_EVERY = 5.0
"""Seconds between two looks at what other processes have written."""

_FAILED = ".failed-"
"""Begin of the name of a file that a rank leaves when it fails."""

PATIENCE = 3600.0
"""Seconds that the first rank waits for others that write nothing."""


class Share:
    """What this rank draws.

    Args:
        store: where images are put.
        drawing: what gives them.
        missing: batches that were missing at the start, of all ranks.
        progress: where to show how far all ranks are; ``None`` not to.
    """

    def __init__(
        self,
        store: SampleStore,
        drawing: Drawing,
        missing: set[int],
        progress: ImageProgress | None,
    ) -> None:
        self.store, self.drawing, self.progress = store, drawing, progress
        self.missing = missing
        self._drawn = 0.0  # of the shard at hand, which is not counted as there
        self._there = store.count - store.images_in(sorted(missing))
        self._looked = time.monotonic()
        self._steps = drawing.sampler.num_steps(drawing.process)

    def fill_all(self, shards: Iterable[int]) -> None:
        """Draw and write what is missing of some shards.

        Raises:
            InputError: a full disk, or too little memory on the device.
        """
        failed = self.store.root / f"{_FAILED}{rank()}"
        try:
            self.store.root.mkdir(parents=True, exist_ok=True)
            failed.unlink(missing_ok=True)
            for shard in shards:
                own = [batch for batch in self.store.batches_of(shard) if batch in self.missing]
                self.store.fill(shard, self.missing, self._draw)
                self._drawn = 0.0
                self._there += self.store.images_in(own)
                self._show()
        except BaseException as error:
            # Under some launchers nobody else tells the first rank, which waits for the others.
            with suppress(OSError):
                failed.write_text(str(error), encoding="utf-8")
            self._explain(error)
            raise

    def _explain(self, error: BaseException) -> None:
        """Raise what the user can mend as such."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{self.store.root} can't be written: {error.strerror}; what is there is kept: "
                "make room and go on with resume=FOLDER"
            ) from None
        if isinstance(error, torch.OutOfMemoryError):
            raise InputError(
                f"batch_size={self.drawing.batch_size} needs more memory than the device has; "
                "choose a smaller one"
            ) from None

    def _draw(self, batch: int) -> Tensor:
        before = self._drawn

        def advance(_: int, state: Tensor) -> None:
            self._drawn += len(state) / self._steps
            self._show()

        images = self.drawing.draw(batch, advance)
        self._drawn = before + len(images)
        return images

    def _show(self) -> None:
        if self.progress is None:
            return
        if time.monotonic() - self._looked > _LOOK_EVERY:
            self._look()
        # What is drawn is written soon after: at the very end it may count twice for a moment.
        self.progress.reach(min(self._there + self._drawn, self.store.count - 1))

    def _look(self) -> list[int]:
        """Count what all ranks have written."""
        missing = self.store.missing()
        self._there = self.store.count - self.store.images_in(missing)
        self._looked = time.monotonic()
        return missing

    def wait(self) -> None:
        """Wait until nothing is missing.

        Raises:
            RuntimeError: another rank has failed, or nobody has written anything for long.
        """
        assert self.progress is not None
        self._drawn, since, before = 0.0, time.monotonic(), -1
        while self._look():
            now = time.monotonic()
            if self._there != before:
                before, since = self._there, now
            failed = sorted(self.store.root.glob(f"{_FAILED}*"))
            if failed or now - since > PATIENCE:
                why = (
                    f"rank {failed[0].name.removeprefix(_FAILED)} has failed"
                    if failed
                    else (f"the other ranks have written nothing for {PATIENCE / 60:.0f} minutes")
                )
                raise RuntimeError(f"{why}; what is there is kept")
            self._show()
            time.sleep(0.5)
        self.progress.reach(self.store.count)


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
