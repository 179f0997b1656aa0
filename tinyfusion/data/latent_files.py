"""Latents in the layout of DiT's feature extraction: one .npy per image and one per label.

``root/imagenet256_features/0.npy`` of shape (2, 4, 32, 32), the image's and its mirror's latent,
or (1, 4, 32, 32) without a mirror, is one sample of the posterior and scaled already;
``root/imagenet256_labels/0.npy`` holds its class.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.latent_store import check_labels
from tinyfusion.data.source import ImageSource, finite, split_order
from tinyfusion.data.walk import LeftOut, listed
from tinyfusion.errors import InputError
from tinyfusion.notices import notice
from tinyfusion.seeding import Rows, StepNoise

log = logging.getLogger(__name__)


class LatentFiles(ImageSource):
    """Latents from one file per image.

    Opening files by the thousand is slow: `tinyfusion encode` makes a faster store, which can
    also be sampled anew in every epoch.

    Args:
        root: folder that holds the two folders.
        features: name of the folder of latents; ``None`` for the only one ``*_features``.
        labels: name of the folder of labels; ``None`` for the only one ``*_labels``.
        num_classes: number of classes.
        flip: take the mirror's latent with probability one half.
        held_out: how many images are held out; which ones is the same in every run.
        verify: read every label and the header of every latent at the start, else when they are
            due.

    Raises:
        InputError: a missing folder, a latent without label or a label without latent, and in the
            first file (with ``verify``: in any) a wrong shape or a class out of range.
    """

    pixels = False

    def __init__(
        self,
        root: Path | str,
        features: str | None = None,
        labels: str | None = None,
        num_classes: int = 1000,
        flip: bool = True,
        held_out: int = 0,
        verify: bool = False,
    ) -> None:
        root = Path(root).expanduser()
        if num_classes < 1:
            raise InputError(f"data.num_classes={num_classes}: must be at least 1")
        self.num_classes, self._flip = num_classes, flip
        self._features = _folder(root, features, "features")
        self._label_folder = _folder(root, labels, "labels")
        self._names = _paired(self._features, self._label_folder)
        if not 0 <= held_out < len(self._names):
            raise InputError(
                f"data.held_out={held_out}: must be between 0 and {len(self._names) - 1}, as "
                f"{str(self._features)!r} holds {len(self._names)} latents"
            )
        log.info("data: %s latent(s) of %s", f"{len(self._names):,}", self._features)
        self._train, self._held_out = split_order(len(self._names), held_out)
        first = _load(self._features / self._names[0])
        if first.ndim != 4 or first.shape[-1] != first.shape[-2]:
            raise InputError(
                f"latent file {str(self._features / self._names[0])!r} has shape {first.shape}; "
                "valid: (2, C, h, h), image and mirror, or (1, C, h, h)"
            )
        self.channels, self.size = first.shape[1], first.shape[2]
        for name in self._names if verify else self._names[:1]:
            self._latent(name, mmap_mode="r")
            self._label(name)

    def __len__(self) -> int:
        return len(self._train)

    def fetch(
        self, indices: Tensor, augment: StepNoise | None, rows: Rows | None
    ) -> tuple[Tensor, ClassLabels]:
        """See ``ImageSource.fetch``; augmentation takes mirrors."""
        mirrored_B = torch.zeros(len(indices), dtype=torch.bool)
        if augment is not None and rows is not None and self._flip:
            mirrored_B = augment.uniform("augment", rows) < 0.5
        return self._finite(self._train, indices, mirrored_B)

    def held_out(self) -> tuple[Tensor, ClassLabels]:
        """Latents of the held-out images (N, C, h, w), scaled, and their labels (N,)."""
        every = torch.arange(len(self._held_out))
        return self._finite(self._held_out, every, torch.zeros(len(every), dtype=torch.bool))

    def reference(self) -> Tensor:
        """There is none.

        Raises:
            InputError: always.
        """
        raise InputError(
            "data=latent_files holds no images to compare samples with; give the evaluation "
            "reference images, or evaluation=none"
        )

    def _finite(
        self, order: Tensor, indices: Tensor, mirrored_B: Tensor
    ) -> tuple[Tensor, ClassLabels]:
        return finite(
            lambda indices: self._read(order[indices], mirrored_B),
            indices,
            len(order),
            lambda index: f"latent file {str(self._features / self._names[order[index]])!r}",
        )

    def _read(self, numbers_B: Tensor, mirrored_B: Tensor) -> tuple[Tensor, ClassLabels]:
        names = [self._names[number] for number in numbers_B.tolist()]
        latents = np.empty((len(names), self.channels, self.size, self.size), np.float32)
        for row, (name, mirrored) in enumerate(zip(names, mirrored_B.tolist(), strict=True)):
            latents[row] = self._latent(name)[int(mirrored)]
        labels = torch.tensor([self._label(name) for name in names], dtype=torch.int64)
        return torch.from_numpy(latents), ClassLabels(labels)

    def _latent(self, name: str, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
        """Latents of an image and, if there is one, of its mirror."""
        file = self._features / name
        found = _load(file, mmap_mode)
        wanted = (self.channels, self.size, self.size)
        if found.shape not in ((1, *wanted), (2, *wanted)) or found.dtype.kind != "f":
            raise InputError(
                f"latent file {str(file)!r} holds {found.dtype} of shape {found.shape}; valid: "
                f"floating-point numbers of shape {(2, *wanted)}, image and mirror, or "
                f"{(1, *wanted)}"
            )
        if self._flip and len(found) == 1:
            raise InputError(
                f"latent file {str(file)!r} of shape {found.shape} has no mirror; give "
                "data.flip=false"
            )
        return found

    def _label(self, name: str) -> int:
        file = self._label_folder / name
        found = _load(file)
        if found.shape not in ((), (1,)) or found.dtype.kind not in "iu":
            raise InputError(
                f"label file {str(file)!r} holds {found.dtype} of shape {found.shape}; valid: one "
                "whole number, of shape (1,) or ()"
            )
        label = torch.from_numpy(found.reshape(1).astype(np.int64))
        check_labels(label, self.num_classes, f"label file {str(file)!r}")
        return int(label)


def _folder(root: Path, name: str | None, what: str) -> Path:
    """The folder of latents or of labels."""
    if not root.is_dir():
        raise InputError(f"data.root={str(root)!r}: no such folder")
    if name is not None:
        if not (root / name).is_dir():
            raise InputError(f"data.{what}={name!r}: no such folder in {str(root)!r}")
        return root / name
    found = sorted(
        entry for entry in root.glob(f"*{what}") if entry.is_dir() and entry.name[0] != "."
    )
    if len(found) != 1:
        names = ", ".join(entry.name for entry in found) or "none"
        raise InputError(
            f"data.root={str(root)!r}: expected one folder '*_{what}', found {names}; give "
            f"data.{what}=NAME"
        )
    return found[0]


def _paired(features: Path, labels: Path) -> list[str]:
    """File names that both folders have, numbers in numeric order."""
    left = LeftOut()
    latents, classes = (
        set(listed(str(f), str(f.parent), left, {".npy"})[1]) for f in (features, labels)
    )
    if left:
        notice(f"data.root={str(features.parent)!r}: left out {left}")
    for name in sorted(latents ^ classes)[:1]:
        has, lacks = (features, labels) if name in latents else (labels, features)
        raise InputError(f"{str(has / name)!r} has no partner {str(lacks / name)!r}")
    if not latents:
        raise InputError(f"{str(features)!r} holds no .npy files")
    return sorted(latents, key=lambda name: (len(name), name) if name[:-4].isdigit() else (0, name))


def _load(file: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    try:
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"file {str(file)!r} can't be read: {error}") from None
