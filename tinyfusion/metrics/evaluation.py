"""Scoring a model: samples against real images, held-out loss, distance to its teacher, size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import ClassLabels, Conditioning
from tinyfusion.data.drawn_images import DrawnImages
from tinyfusion.data.image_sets import ImageSet
from tinyfusion.data.source import ImageSource
from tinyfusion.group import ALONE, Group
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.metrics.sample_scoring import SampleScoring
from tinyfusion.metrics.speed import compare_speed, macs, parameters, sampling_run
from tinyfusion.processes.contract import Process
from tinyfusion.samplers.generate import Drawing, class_labels


class Evaluation(SampleScoring):
    """Draws samples of models and scores them, all by the same settings; see `ScoringProtocol`."""

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
