"""Scoring a model: samples against real images, held-out loss, distance to its teacher, size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import ClassLabels, Conditioning
from tinyfusion.data.drawn_images import DecodedImages, DrawnImages
from tinyfusion.data.image_sets import ImageSet, TensorImages
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.group import ALONE, Group
from tinyfusion.metrics.features import extract, layers, weights_digest
from tinyfusion.metrics.fidelity import (
    SPLIT_SIZE,
    Reference,
    check_counts,
    check_same_shape,
    real_halves_fid,
    score,
)
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.metrics.reference import RealImages, read_reference, reference_of
from tinyfusion.metrics.shown import settings_of
from tinyfusion.metrics.speed import compare_speed, macs, parameters, sampling_run
from tinyfusion.processes.contract import Process
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.generate import (
    Drawing,
    check_class_balance,
    class_labels,
)
from tinyfusion.samplers.guidance import Guidance


@dataclass(frozen=True)
class Evaluation:
    """A sampling and scoring protocol; the same for every row of a table.

    Attributes:
        num_samples: samples per seed.
        sampler: how samples are drawn.
        guidance: guidance of the scored samples (1 at digits scale: more distorts FID there).
        seeds: sampling seeds; metrics are means over them; of several, ``fid_std`` is the spread.
        class_balance: ``balanced``: samples are spread evenly over the classes; ``random``: the
            class of each is drawn, as published.
        extractor: torch-fidelity feature extractor.
        weights: file of the extractor's weights; ``None`` for the published ones, which are
            fetched at first use.
        is_split_size: samples per inception score, see `metrics.fidelity.inception_score`.
        neighbours: k of the nearest-neighbour balls of precision and recall.
        batch_size: samples per batch.
        held_out_repeats: how often each held-out image is noised.
        speed_samples: images per timed run; 0 leaves speed out.
        speed_repeats: timed runs per model.
        autoencoder: decoder of a model of latents; ``None`` for one of pixels. Speed is measured
            without it.
        reference: real images to score against, see `metrics.reference.read_reference`;
            ``None`` for the data's own: all images of a data set of pixels, and decoded training
            latents of one of latents, as many as there are samples. The latter is a score against
            reconstructions, not the published protocol.
        reference_samples: use at most so many real images.
        features_folder: where features of real images are kept, by content, for later runs;
            ``None`` keeps none.

    Raises:
        InputError: a count below its minimum, or an unknown ``class_balance``.
    """

    num_samples: int
    sampler: Sampler
    guidance: Guidance
    seeds: Sequence[int] = (0,)
    class_balance: str = "balanced"
    extractor: str = "tinyfusion-digits"
    weights: str | None = None
    is_split_size: int | None = None
    neighbours: int = 3
    batch_size: int = 256
    held_out_repeats: int = 4
    speed_samples: int = 128
    speed_repeats: int = 3
    autoencoder: Autoencoder | None = None
    reference: str | None = None
    reference_samples: int | None = None
    features_folder: str | None = None
    _known: dict[int, tuple[Any, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        least = {
            "num_samples": 4,
            "neighbours": 1,
            "batch_size": 1,
            "held_out_repeats": 1,
            "speed_samples": 0,
            "speed_repeats": 1,
        }
        if self.reference_samples is not None:
            least["reference_samples"] = 4
        for name, minimum in least.items():
            value = getattr(self, name)
            if value < minimum:
                raise InputError(f"evaluation.{name}={value} must be at least {minimum}")
        if not self.seeds:
            raise InputError("evaluation.seeds is empty; give at least one sampling seed")
        check_class_balance(self.class_balance, "evaluation.class_balance")

    def check_counts(self, samples: int | None = None, reference: int | None = None) -> None:
        """Refuse counts that can't be scored.

        Args:
            samples: number of samples; ``None`` not to check them.
            reference: number of real images; ``None`` not to check them.

        Raises:
            InputError: too few for the neighbours or for a split of the inception score.
        """
        check_counts(samples, reference, self.neighbours, self.is_split_size)

    def protocol(self) -> dict[str, Any]:
        """The settings that stand beside a table, as plain data."""
        return {
            "num_samples": self.num_samples,
            "sampler": settings_of(self.sampler),
            "guidance": self.guidance.scale,
            "guided_channels": self.guidance.channels,
            "class_balance": self.class_balance,
            "sampling_seeds": list(self.seeds),
            **self.scoring(self.num_samples),
        }

    def scoring(self, samples: int) -> dict[str, Any]:
        """The part of the protocol that also holds for samples from elsewhere.

        Args:
            samples: their number.
        """
        reference = self.reference
        if reference is None and self.autoencoder is not None:
            reference = "decoded training latents"
        return {
            "reference": reference,
            "extractor": self.extractor,
            "is_split_size": self.is_split_size or min(SPLIT_SIZE, samples),
            "neighbours": self.neighbours,
        }

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
        """FID between two random halves of the real data: what chance alone makes of their number.

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

    def content(self) -> dict[str, str]:
        """Hashes of the files that scores depend on, by what they are."""
        found = {"weights": weights_digest(self.extractor, self.weights)}
        if self.reference is not None:
            real = read_reference(self.reference, self.reference_samples)
            found["reference"] = real.digest()
        return found

    def drawing(
        self,
        net: Backbone,
        process: Process,
        seed: int,
        dtype: torch.dtype | None = None,
        conditioning: Conditioning | None = None,
    ) -> Drawing:
        """The samples of one seed.

        Args:
            net: the model.
            process: its process.
            seed: sampling seed.
            dtype: see `samplers.generate.generate`.
            conditioning: of other samples than those that are scored.
        """
        if conditioning is None:
            labels = class_labels(self.num_samples, net.num_classes, self.class_balance, seed)
            conditioning = ClassLabels(labels)
        return Drawing(
            net,
            process,
            self.sampler,
            conditioning,
            seed,
            self.guidance,
            self.autoencoder,
            self.batch_size,
            dtype,
        )

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

    def score(
        self,
        net: Backbone,
        process: Process,
        source: ImageSource,
        teacher: Backbone | None = None,
        progress: bool = False,
        dtype: torch.dtype | None = None,
        keep: Callable[[Drawing], ImageSet] | None = None,
        group: Group = ALONE,
    ) -> dict[str, float]:
        """All figures of one model.

        Args:
            net: the model; the same one on every rank.
            process: its process.
            source: real images.
            teacher: if given, the squared distance of the two outputs on the fixed held-out
                batch is added as ``teacher_distance``.
            progress: show bars.
            dtype: what sampling is computed in, see `samplers.generate.generate`.
            keep: draws samples, keeps them somewhere and gives them back; ``None`` keeps none.
            group: ranks that share sampling and features; how many does not change a figure.

        Returns:
            What `fidelity` gives, as means over seeds, ``fid_std`` (with several seeds),
            ``held_out_loss`` and its standard error, ``held_out_mse``, ``depth``,
            ``parameters``, ``macs`` (one forward, one sample); on every rank.
        """
        device = next(net.parameters()).device
        drawings = (self.drawing(net, process, seed, dtype) for seed in self.seeds)
        runs = []
        for drawing in drawings:
            samples = DrawnImages(drawing, progress) if keep is None else keep(drawing)
            runs.append(self.fidelity(samples, source, device, group=group))
        return group.from_first(lambda: self._row(runs, net, process, source, teacher))

    def _row(
        self,
        runs: Sequence[dict[str, float]],
        net: Backbone,
        process: Process,
        source: ImageSource,
        teacher: Backbone | None,
    ) -> dict[str, float]:
        """Figures of one model whose samples were scored, once for each seed."""
        means = {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]}
        held_out = HeldOutLoss(process, *source.held_out(), repeats=self.held_out_repeats)
        out = held_out.predict(net)
        losses = held_out.of(out)
        row: dict[str, float] = {
            **means,
            "held_out_loss": losses["loss"],
            "held_out_loss_stderr": losses["loss_stderr"],
            "held_out_mse": losses["mse"],
            "depth": net.depth,
            "parameters": parameters(net),
            "macs": macs(net),
        }
        if len(runs) > 1 and "fid" in means:
            # Of one seed there is no spread to speak of; 0 would read as a perfect one.
            fids = torch.tensor([run["fid"] for run in runs], dtype=torch.float64)
            row["fid_std"] = float(fids.std())
        if teacher is not None:
            row["teacher_distance"] = held_out.distance(out, held_out.predict(teacher))
        return row

    def speed(
        self, nets: dict[str, Backbone], process: Process, dtype: torch.dtype | None = None
    ) -> dict[str, dict[str, float]]:
        """Images per second of each model, measured in turn; ``ratio`` is to the first.

        `tinyfusion benchmark` measures more closely.

        Args:
            nets: models by name.
            process: their process.
            dtype: what sampling is computed in, see `samplers.generate.generate`.
        """
        if self.speed_samples < 1:
            return {}
        runs = {
            name: sampling_run(
                net,
                process,
                self.sampler,
                self.guidance,
                self.speed_samples,
                self.batch_size,
                dtype=dtype,
            )
            for name, net in nets.items()
        }
        return compare_speed(runs, self.speed_repeats)
