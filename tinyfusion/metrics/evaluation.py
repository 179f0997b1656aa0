"""Scoring a model: samples against real images, held-out loss, distance to its teacher, size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.contract import Backbone
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.metrics.fidelity import fidelity, real_halves_fid
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.metrics.reference import read_reference
from tinyfusion.metrics.speed import compare_speed, macs, parameters
from tinyfusion.processes.contract import Process
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.generate import (
    balanced_labels,
    decode_images,
    generate,
    generate_images,
)
from tinyfusion.samplers.guidance import Guidance


@dataclass(frozen=True)
class Evaluation:
    """A sampling and scoring protocol; the same for every row of a table.

    Attributes:
        num_samples: samples per seed, spread evenly over the classes.
        sampler: how samples are drawn.
        guidance: guidance of the scored samples (1 at digits scale: more distorts FID there).
        seeds: sampling seeds; metrics are means over them; of several, ``fid_std`` is the spread.
        extractor: torch-fidelity feature extractor.
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

    Raises:
        InputError: a count below its minimum.
    """

    num_samples: int
    sampler: Sampler
    guidance: Guidance
    seeds: Sequence[int] = (0,)
    extractor: str = "tinyfusion-digits"
    batch_size: int = 256
    held_out_repeats: int = 4
    speed_samples: int = 128
    speed_repeats: int = 3
    autoencoder: Autoencoder | None = None
    reference: str | None = None
    reference_samples: int | None = None
    _real: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        least = {
            "num_samples": 4,
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

    def protocol(self) -> dict[str, Any]:
        """The settings that stand beside a table, as plain data."""
        reference = self.reference
        if reference is None and self.autoencoder is not None:
            reference = "decoded training latents"
        return {
            "num_samples": self.num_samples,
            "sampler": settings_of(self.sampler),
            "guidance": self.guidance.scale,
            "sampling_seeds": list(self.seeds),
            "extractor": self.extractor,
            "reference": reference,
        }

    def real(self, source: ImageSource, device: torch.device | None = None) -> Tensor:
        """Real images to score against, uint8, shape (M, C, H, W); the same at every call.

        Args:
            source: the data.
            device: where latents are decoded.

        Raises:
            InputError: latents without a decoder or ``reference``, or an unreadable ``reference``.
        """
        # Models are scored one after the other: what was read or decoded for one is kept.
        if id(source) not in self._real:
            self._real.clear()
            self._real[id(source)] = self._read_real(source, device or torch.device("cpu"))
        return self._real[id(source)]

    def _read_real(self, source: ImageSource, device: torch.device) -> Tensor:
        if self.reference is not None:
            return read_reference(self.reference, self.reference_samples)
        if source.pixels:
            return source.reference()[: self.reference_samples]
        if self.autoencoder is None:
            raise InputError(
                "scores need images but the data holds latents: give autoencoder=, or "
                "evaluation=none for no scores"
            )
        count = min(len(source), self.reference_samples or self.num_samples)
        latents, _ = source.plain(torch.arange(count))
        return decode_images(latents, self.autoencoder, device)

    def floor(
        self, source: ImageSource, draws: int = 3, device: torch.device | None = None
    ) -> dict[str, float]:
        """FID between two random halves of the real data: no model can be expected below it.

        Args:
            source: real images.
            draws: number of random splits.
            device: where latents are decoded.

        Returns:
            ``fid_real_halves`` and ``fid_real_halves_std`` over the splits.
        """
        real = self.real(source, device)
        fids = torch.tensor(
            [real_halves_fid(real, seed, self.extractor) for seed in range(draws)],
            dtype=torch.float64,
        )
        return {"fid_real_halves": float(fids.mean()), "fid_real_halves_std": float(fids.std())}

    def samples(self, net: Backbone, process: Process, seed: int, progress: bool = False) -> Tensor:
        """Images to be scored, uint8, shape (num_samples, C, H, W)."""
        labels = balanced_labels(self.num_samples, net.num_classes)
        return generate_images(
            net,
            process,
            self.sampler,
            labels,
            seed,
            self.guidance,
            self.autoencoder,
            batch_size=self.batch_size,
            progress=progress,
        )

    def score(
        self,
        net: Backbone,
        process: Process,
        source: ImageSource,
        teacher: Backbone | None = None,
        progress: bool = False,
    ) -> dict[str, float]:
        """All figures of one model.

        Args:
            net: the model.
            process: its process.
            source: real images.
            teacher: if given, the squared distance of the two outputs on the fixed held-out
                batch is added as ``teacher_distance``.
            progress: show bars.

        Returns:
            ``fid`` (mean over seeds), ``fid_std`` (with several seeds), ``inception_score``,
            ``precision``, ``recall``, ``held_out_loss`` and its standard error,
            ``held_out_mse``, ``depth``, ``parameters``, ``macs`` (one forward, one sample).
        """
        reference = self.real(source, next(net.parameters()).device)
        runs = [
            fidelity(self.samples(net, process, seed, progress), reference, self.extractor)
            for seed in self.seeds
        ]
        means = {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]}
        fids = torch.tensor([run["fid"] for run in runs], dtype=torch.float64)
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
        if len(fids) > 1:
            # Of one seed there is no spread to speak of; 0 would read as a perfect one.
            row["fid_std"] = float(fids.std())
        if teacher is not None:
            row["teacher_distance"] = held_out.distance(out, held_out.predict(teacher))
        return row

    def speed(self, nets: dict[str, Backbone], process: Process) -> dict[str, dict[str, float]]:
        """Images per second of each model, measured in turn; ``ratio`` is to the first."""
        if self.speed_samples < 1:
            return {}
        labels = balanced_labels(self.speed_samples, 2)

        def runner(net: Backbone):
            def run() -> int:
                generate(
                    net,
                    process,
                    self.sampler,
                    labels,
                    seed=0,
                    guidance=self.guidance,
                    batch_size=self.batch_size,
                )
                return len(labels)

            return run

        return compare_speed({name: runner(net) for name, net in nets.items()}, self.speed_repeats)


def settings_of(sampler: Sampler) -> str:
    """A sampler in one line: its class and its plain settings."""
    plain = (str, int, float, bool, type(None))
    settings = {
        name: value
        for name, value in vars(sampler).items()
        if not name.startswith("_") and isinstance(value, plain)
    }
    return f"{type(sampler).__name__}({', '.join(f'{k}={v}' for k, v in settings.items())})"


def for_table(row: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a row of `Evaluation.score` with FID and its spread in one cell.

    Args:
        row: values by key; other keys stay as they are.

    Returns:
        With ``fid_std`` in ``row``, ``fid`` is the pair (mean, spread), which tables show as
        "mean ± spread", and ``fid_std`` is gone.
    """
    shown = dict(row)
    spread = shown.pop("fid_std", None)
    if spread is not None:
        shown["fid"] = (shown["fid"], spread)
    return shown
