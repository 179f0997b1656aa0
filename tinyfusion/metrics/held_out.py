"""Loss on a fixed noised batch: the same times, noise and labels for every model compared."""

from __future__ import annotations

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, BlockRunner, evaluating, run_plain
from tinyfusion.processes.gaussian import GaussianDiffusion, batch_means, mean_flat
from tinyfusion.seeding import generator


class HeldOutLoss:
    """Scores networks on fixed data with common random numbers.

    Args:
        process: the diffusion process.
        images: clean data, shape (N, C, H, W).
        labels: labels, kept as they are (never dropped), shape (N,).
        repeats: how many times each image is noised; times are spread evenly over the schedule
            so that few samples cover it.
        seed: seed of the draws.
        batch_size: images per forward pass.
    """

    def __init__(
        self,
        process: GaussianDiffusion,
        images: Tensor,
        labels: Tensor,
        repeats: int = 4,
        seed: int = 0,
        batch_size: int = 512,
    ) -> None:
        self.process = process
        self.batch_size = batch_size
        draws = generator(seed, "held_out")
        clean = images.repeat(repeats, 1, 1, 1)
        self.labels = labels.repeat(repeats)
        count = len(clean)
        # Stratified: one draw in each of `count` equal slices of the schedule, shuffled.
        slices = torch.randperm(count, generator=draws)
        uniform = (slices + torch.rand(count, generator=draws)) / count
        noise = torch.randn(clean.shape, generator=draws)
        self.batch = process.add_noise(clean, process.times_from_uniform(uniform), noise)

    @torch.no_grad()
    def predict(self, net: Backbone, run_block: BlockRunner = run_plain) -> Tensor:
        """Raw predictions for the fixed batch, in evaluation mode, on the CPU."""
        device = next(net.parameters()).device
        times = self.process.network_time(self.batch.t)
        parts = []
        with evaluating(net):
            for start in range(0, len(times), self.batch_size):
                rows = slice(start, start + self.batch_size)
                inputs = (self.batch.noisy[rows], times[rows], self.labels[rows])
                out = net(*(value.to(device) for value in inputs), run_block=run_block)
                parts.append(out.float().cpu())
        return torch.cat(parts)

    def __call__(self, net: Backbone, run_block: BlockRunner = run_plain) -> dict[str, float]:
        """Losses of a network on the fixed batch; see `of`."""
        return self.of(self.predict(net, run_block))

    def of(self, out: Tensor) -> dict[str, float]:
        """Mean of every loss term, with the standard error of ``loss`` as ``loss_stderr``.

        Args:
            out: what `predict` gave.
        """
        terms = self.process.loss(out, self.batch)
        scores = {name: float(value) for name, value in batch_means(terms).items()}
        scores["loss_stderr"] = float(terms["loss"].std() / len(terms["loss"]) ** 0.5)
        return scores

    def distance(self, out: Tensor, teacher_out: Tensor) -> float:
        """Mean squared distance of two noise predictions for the fixed batch."""
        channels = self.batch.clean.shape[1]
        return float(mean_flat((out[:, :channels] - teacher_out[:, :channels]) ** 2).mean())
