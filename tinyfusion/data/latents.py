"""Latents of a store that `tinyfusion encode` wrote, as training data.

Shape suffixes: B batch.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.latent_plan import DTYPE, VIEWS
from tinyfusion.data.latent_store import LatentStore
from tinyfusion.data.source import ImageSource, finite, split_order
from tinyfusion.errors import InputError
from tinyfusion.notices import notice
from tinyfusion.seeding import Rows, StepNoise

log = logging.getLogger(__name__)


class Latents(ImageSource):
    """Latents from memory-mapped shards, in any order.

    The posterior is sampled and scaled where training runs (`finish`), so that what is loaded and
    transferred is what is stored.

    Args:
        root: folder of the store.
        flip: take the latent of the mirrored image with probability one half.
        draw: sample the posterior anew for every step, else take its mean; ``None`` samples
            where the store holds moments.
        held_out: how many images are held out; which ones is the same in every run.
        verify: compare the checksum of every shard at the start, which reads the whole store.

    Attributes:
        scale: what the stored latents are multiplied by.
        autoencoder: path or hub id of the autoencoder that made them.
        weights: SHA-256 of its weights.

    Raises:
        InputError: a wrong argument, or a store that is unfinished, incomplete or damaged.
    """

    pixels = False

    def __init__(
        self,
        root: Path | str,
        flip: bool = True,
        draw: bool | None = None,
        held_out: int = 0,
        verify: bool = False,
    ) -> None:
        self._store = LatentStore(Path(root).expanduser(), mirrors=flip)
        plan = self._store.plan
        if draw and plan.kind != "moments":
            raise InputError(
                f"data.draw=true: {str(root)!r} holds the posteriors' means only; give "
                "data.draw=false, or encode with moments=true"
            )
        if verify:
            log.info("data: comparing the checksums of %s", root)
            self._store.verify()
        self.num_classes, self.channels, self.size = len(plan.classes), plan.channels, plan.size
        self.scale, self.autoencoder, self.weights = plan.scale, plan.autoencoder, plan.weights
        self._flip, self._draw = flip, plan.kind == "moments" if draw is None else draw
        total = len(self._store.labels)
        if not 0 <= held_out < total:
            raise InputError(
                f"data.held_out={held_out}: must be between 0 and {total - 1}, as {str(root)!r} "
                f"holds {total} latents"
            )
        self._train, self._held_out = split_order(total, held_out)
        self._ends = self._store.counts.cumsum()
        log.info(
            "data: %s latent(s) in %s class(es) of %s", f"{total:,}", f"{self.num_classes:,}", root
        )
        if lost := plan.num_files - total:
            notice(f"data.root={str(root)!r}: {lost:,} image(s) were left out when it was encoded")

    def __len__(self) -> int:
        return len(self._train)

    def fetch(
        self, indices: Tensor, augment: StepNoise | None, rows: Rows | None
    ) -> tuple[Tensor, ClassLabels]:
        """See ``ImageSource.fetch``; augmentation takes mirrors and, if wanted, moments.

        Returns:
            unscaled means (B, C, h, w) or means and log-variances (B, 2C, h, w), float16, and
            labels (B,).
        """
        mirrored_B = torch.zeros(len(indices), dtype=torch.bool)
        if augment is not None and rows is not None and self._flip:
            mirrored_B = augment.uniform("augment", rows) < 0.5
        moments = augment is not None and self._draw
        return self._finite(self._train, indices, mirrored_B, moments)

    def _finite(
        self, order: Tensor, indices: Tensor, mirrored_B: Tensor, moments: bool
    ) -> tuple[Tensor, ClassLabels]:
        return finite(
            lambda indices: self._read(order[indices], mirrored_B, moments),
            indices,
            len(order),
            lambda index: f"latent {int(order[index])} of {self._store.root}",
        )

    def _read(
        self, numbers_B: Tensor, mirrored_B: Tensor, moments: bool
    ) -> tuple[Tensor, ClassLabels]:
        channels = self.channels * (2 if moments else 1)
        numbers = numbers_B.numpy()
        shards = np.searchsorted(self._ends, numbers, side="right")
        places = numbers - (self._ends - self._store.counts)[shards]
        stored = np.empty((len(numbers), channels, self.size, self.size), DTYPE)
        taken = zip(shards.tolist(), places.tolist(), mirrored_B.tolist(), strict=True)
        for row, (shard, place, mirrored) in enumerate(taken):
            stored[row] = self._store.rows(shard, VIEWS[mirrored])[place, :channels]
        return torch.from_numpy(stored), ClassLabels(self._store.labels[numbers_B])

    def finish(self, stored: Tensor, augment: StepNoise | None, rows: Rows | None) -> Tensor:
        """Latents for the diffusion model: a draw from the posterior, or its mean, times scale."""
        mean = stored[:, : self.channels].float()
        if augment is None or rows is None or stored.shape[1] == self.channels:
            return mean * self.scale
        deviation = (0.5 * stored[:, self.channels :].float()).exp()
        noise = augment.normal("posterior", rows, *mean.shape[1:]).to(mean.device)
        return (mean + deviation * noise) * self.scale

    def held_out(self) -> tuple[Tensor, ClassLabels]:
        """Scaled posterior means of the held-out images (N, C, h, w) and their labels (N,)."""
        nothing = torch.zeros(len(self._held_out), dtype=torch.bool)
        every = torch.arange(len(self._held_out))
        stored, labels = self._finite(self._held_out, every, nothing, moments=False)
        return self.finish(stored, None, None), labels

    def reference(self) -> Tensor:
        """There is none.

        Raises:
            InputError: always.
        """
        raise InputError(
            "data=latents holds no images to compare samples with; give the evaluation reference "
            "images, or evaluation=none"
        )
