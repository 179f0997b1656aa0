"""Scores of samples against real images, whose features are computed once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from tinyfusion.data.drawn_images import DecodedImages, DrawnImages
from tinyfusion.data.image_sets import ImageSet, TensorImages
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.group import ALONE, Group
from tinyfusion.metrics.features import extract, layers
from tinyfusion.metrics.fidelity import Reference, check_same_shape, real_halves_fid, score
from tinyfusion.metrics.protocol import ScoringProtocol
from tinyfusion.metrics.reference import RealImages, read_reference, reference_of


@dataclass(frozen=True)
class SampleScoring(ScoringProtocol):
    """Scores samples, from wherever they are, by a protocol; see `ScoringProtocol`."""

    _known: dict[int, tuple[ImageSource | None, tuple[int, int, int] | None, Reference]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def real(self, source: ImageSource | None, device: torch.device | None = None) -> RealImages:
        """Real images to score against.

        Args:
            source: the data; not needed if there is a ``reference``.
            device: where latents are decoded.

        Raises:
            InputError: neither, latents without a decoder, or an unreadable ``reference``.
        """
        if self.reference is not None:
            return read_reference(self.reference, self.reference_samples)
        if source is None:
            raise InputError(
                "evaluation.reference= must be given: the real images to score against"
            )
        if source.pixels:
            return RealImages(TensorImages(source.reference()[: self.reference_samples]), {})
        if self.autoencoder is None:
            raise InputError(
                "scores need images but the data holds latents: give autoencoder=, or "
                "evaluation=none for no scores"
            )
        count = min(len(source), self.reference_samples or self.num_samples)
        decoded = DecodedImages(source, count, self.autoencoder, device or torch.device("cpu"))
        return RealImages(decoded, {})

    def known(
        self,
        source: ImageSource | None,
        device: torch.device | None = None,
        progress: bool = False,
        group: Group = ALONE,
    ) -> tuple[tuple[int, int, int] | None, Reference]:
        """What the metrics need of the real images; the same at every call.

        Args:
            source: the data; not needed if there is a ``reference``.
            device: where latents are decoded and features computed.
            progress: show a bar.
            group: ranks that share the real images.

        Returns:
            Shape (C, H, W) of the real images, if they are there, and the reference, which is
            empty on further ranks.

        Raises:
            InputError: see `real`; too few real images; statistics of another extractor.
        """
        # Models are scored one after the other: what was computed for one is kept, the images are
        # not. The source is kept with it, so that no other can take its place and number.
        if id(source) not in self._known:
            real = self.real(source, device)
            if real.images is not None:
                self.check_counts(reference=len(real.images))
            folder = None if self.features_folder is None else Path(self.features_folder)
            reference = reference_of(
                real, self.extractor, self.weights, device or "cpu", folder, progress, group
            )
            shape = None if real.images is None else real.images.shape
            self._known.clear()
            self._known[id(source)] = (source, shape, reference)
        _, shape, reference = self._known[id(source)]
        return shape, reference

    def floor(
        self,
        source: ImageSource | None,
        draws: int = 3,
        device: torch.device | None = None,
        group: Group = ALONE,
    ) -> dict[str, float]:
        """FID between two random halves of the real data: the FID of two samples of one set.

        A model scored with about as many samples as a half has can't be expected below it.

        Args:
            source: real images; not needed if there is a ``reference``.
            draws: number of random splits.
            device: where latents are decoded and features computed.
            group: ranks that share the real images.

        Returns:
            ``fid_real_halves`` and ``fid_real_halves_std`` over the splits; nothing if samples
            are compared with statistics of more images than there are.
        """
        _, reference = self.known(source, device, group=group)

        def computed() -> dict[str, float]:
            if reference.larger or not reference.features:
                return {}
            features = reference.features[layers(self.extractor)["fid"]]
            fids = torch.tensor(
                [real_halves_fid(features, seed) for seed in range(draws)], dtype=torch.float64
            )
            return {
                "fid_real_halves": float(fids.mean()),
                "fid_real_halves_std": float(fids.std()),
            }

        return group.from_first(computed)

    def fidelity(
        self,
        samples: ImageSet,
        source: ImageSource | None,
        device: torch.device | None = None,
        progress: bool = False,
        group: Group = ALONE,
    ) -> dict[str, float]:
        """Samples against real images.

        Args:
            samples: the samples, from wherever they are.
            source: real images; not needed if there is a ``reference``.
            device: where features are computed.
            progress: show a bar.
            group: ranks that share samples and real images; how many does not change a figure.

        Returns:
            See `metrics.fidelity.score`; on every rank.

        Raises:
            InputError: see `known`; samples that are too few, of another size than the real
                images, or with features that are not finite.
        """
        self.check_counts(samples=len(samples))
        shape, reference = self.known(source, device, progress, group)
        if shape is not None:
            check_same_shape(samples.shape, shape)
        features = extract(
            samples,
            self.extractor,
            self.weights,
            device or "cpu",
            name="samples",
            progress=progress and not isinstance(samples, DrawnImages),
            group=group,
        )
        return group.from_first(
            lambda: score(features, reference, self.extractor, self.neighbours, self.is_split_size)
        )
