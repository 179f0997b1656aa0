"""Scoring a model: samples against real images, held-out loss, distance to its teacher, size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.metrics.fidelity import fidelity, real_halves_fid
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.metrics.speed import compare_speed, macs, parameters
from tinyfusion.pixels import to_uint8
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.generate import balanced_labels, generate
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.samplers.reverse import Sampler


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

    def __post_init__(self) -> None:
        least = {
            "num_samples": 4,
            "batch_size": 1,
            "held_out_repeats": 1,
            "speed_samples": 0,
            "speed_repeats": 1,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value < minimum:
                raise InputError(f"evaluation.{name}={value} must be at least {minimum}")
        if not self.seeds:
            raise InputError("evaluation.seeds is empty; give at least one sampling seed")

    def protocol(self) -> dict[str, Any]:
        """The settings that stand beside a table, as plain data."""
        return {
            "num_samples": self.num_samples,
            "sampler": type(self.sampler).__name__,
            "sampler_steps": getattr(self.sampler, "steps", None),
            "guidance": self.guidance.scale,
            "sampling_seeds": list(self.seeds),
            "extractor": self.extractor,
        }

    def floor(self, source: ImageSource, draws: int = 3) -> dict[str, float]:
        """FID between two random halves of the real data: no model can be expected below it.

        Args:
            source: real images.
            draws: number of random splits.

        Returns:
            ``fid_real_halves`` and ``fid_real_halves_std`` over the splits.
        """
        real = source.reference()
        fids = torch.tensor(
            [real_halves_fid(real, seed, self.extractor) for seed in range(draws)],
            dtype=torch.float64,
        )
        return {"fid_real_halves": float(fids.mean()), "fid_real_halves_std": float(fids.std())}

    def samples(
        self, net: Backbone, process: GaussianDiffusion, seed: int, progress: bool = False
    ) -> Tensor:
        """Images to be scored, uint8, shape (num_samples, C, H, W)."""
        labels = balanced_labels(self.num_samples, net.config()["num_classes"])
        images = generate(
            net,
            process,
            self.sampler,
            labels,
            seed,
            self.guidance,
            batch_size=self.batch_size,
            progress=progress,
        )
        return to_uint8(images)

    def score(
        self,
        net: Backbone,
        process: GaussianDiffusion,
        source: ImageSource,
        teacher: Backbone | None = None,
        progress: bool = False,
    ) -> dict[str, float]:
        """All figures of one model.

        Args:
            net: the model.
            process: its diffusion process.
            source: real images.
            teacher: if given, the squared distance of the two noise predictions on the fixed
                held-out batch is added as ``teacher_distance``.
            progress: show bars.

        Returns:
            ``fid`` (mean over seeds), ``fid_std`` (with several seeds), ``inception_score``,
            ``precision``, ``recall``, ``held_out_loss`` and its standard error,
            ``held_out_mse``, ``depth``, ``parameters``, ``macs`` (one forward, one sample).
        """
        reference = source.reference()
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

    def speed(
        self, nets: dict[str, Backbone], process: GaussianDiffusion
    ) -> dict[str, dict[str, float]]:
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
