"""Loss on a fixed corrupted batch: same draws and conditioning for every model compared."""

from __future__ import annotations

import torch
from torch import Tensor

from tinyfusion.backbones.contract import (
    Backbone,
    BlockRunner,
    evaluating,
    predict,
    run_plain,
)
from tinyfusion.conditioning import Conditioning, as_conditioning
from tinyfusion.processes.contract import Process, batch_means
from tinyfusion.seeding import FixedDraws


class HeldOutLoss:
    """Scores networks on fixed data with common random numbers.

    Args:
        process: the process.
        images: clean data, shape (N, C, H, W).
        conditioning: of the same N samples, kept as it is (never dropped); a tensor of integers,
            shape (N,), is taken for class labels.
        repeats: how many times each image is corrupted; times are spread evenly over the schedule
            so that few samples cover it.
        seed: seed of the draws.
        batch_size: images per forward pass.

    Attributes:
        conditioning: of all repeats * N samples.
        parts: rows of the samples and the process's batch of them; one part, or as many as the
            process needs for draws that samples share (`Process.strata`).
    """

    def __init__(
        self,
        process: Process,
        images: Tensor,
        conditioning: Tensor | Conditioning,
        repeats: int = 4,
        seed: int = 0,
        batch_size: int = 512,
    ) -> None:
        self.process = process
        self.batch_size = batch_size
        clean = images.repeat(repeats, 1, 1, 1)
        conditioning = as_conditioning(conditioning)
        self.conditioning = conditioning.cat([conditioning] * repeats)
        count = len(clean)
        draws = FixedDraws(count, seed, "held_out")
        size = max(1, -(-count // process.strata))
        parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
        self.parts = [(rows, process.corrupt(clean[rows], draws.part(rows))) for rows in parts]

    @torch.no_grad()
    def predict(self, net: Backbone, run_block: BlockRunner = run_plain) -> Tensor:
        """Raw predictions for the fixed batch, in evaluation mode, on the CPU.

        Raises:
            InputError: the network can't be told the conditioning, such as a label that it does
                not have.
        """
        self.conditioning.check(net)
        device = next(net.parameters()).device
        outs = []
        with evaluating(net):
            for rows, corrupted in self.parts:
                conditioning = self.conditioning[rows]
                for first in range(0, len(conditioning), self.batch_size):
                    some = slice(first, first + self.batch_size)
                    inputs = [value[some].to(device) for value in corrupted.inputs]
                    out = predict(net, inputs, conditioning[some].to(device), run_block)
                    outs.append(out.float().cpu())
        return torch.cat(outs)

    def __call__(self, net: Backbone, run_block: BlockRunner = run_plain) -> dict[str, float]:
        """Losses of a network on the fixed batch; see `of`."""
        return self.of(self.predict(net, run_block))

    def of(self, out: Tensor) -> dict[str, float]:
        """Mean of every loss term, with the standard error of ``loss`` as ``loss_stderr``.

        Args:
            out: what `predict` gave.
        """
        parts = [self.process.loss(out[rows], corrupted) for rows, corrupted in self.parts]
        terms = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        scores = {name: float(value) for name, value in batch_means(terms).items()}
        scores["loss_stderr"] = float(standard_error(terms["loss"]))
        return scores

    def distance(self, out: Tensor, teacher_out: Tensor) -> float:
        """Mean output distance (``kd`` without variances) of two predictions for the batch."""
        distances = [
            self.process.distillation_loss(out[rows], teacher_out[rows], corrupted, variance=False)
            for rows, corrupted in self.parts
        ]
        return float(torch.cat([terms["kd"] for terms in distances]).mean())


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean over the last dimension; not a number for a single value."""
    count = values.shape[-1]
    if count < 2:
        return values.new_full(values.shape[:-1], torch.nan)
    return values.std(-1) / count**0.5
