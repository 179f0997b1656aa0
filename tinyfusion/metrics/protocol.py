"""What an evaluation is made with: settings that are the same for every row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.errors import InputError
from tinyfusion.metrics.features import weights_digest
from tinyfusion.metrics.fidelity import SPLIT_SIZE, check_counts
from tinyfusion.metrics.reference import read_reference
from tinyfusion.metrics.reporting import settings_of
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.generate import check_class_balance
from tinyfusion.samplers.guidance import Guidance


@dataclass(frozen=True)
class ScoringProtocol:
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
            "guidance_interval": self.guidance.interval and list(self.guidance.interval),
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

    def content(self) -> dict[str, str]:
        """Hashes of the files that scores depend on, by what they are."""
        found = {"weights": weights_digest(self.extractor, self.weights)}
        if self.reference is not None:
            real = read_reference(self.reference, self.reference_samples)
            found["reference"] = real.digest()
        return found
