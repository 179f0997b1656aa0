"""Many samples in batches, where sample i does not depend on how they are batched.

Shape suffixes: N samples, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.progress import Progress
from torch import Tensor

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.contract import Backbone, evaluating
from tinyfusion.errors import InputError
from tinyfusion.pixels import to_uint8
from tinyfusion.processes.contract import Process
from tinyfusion.samplers.contract import Sampler, check_sampler
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.seeding import SampleNoise


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """Labels 0, 1, ..., num_classes-1, 0, 1, ... of shape (count,)."""
    return torch.arange(count) % num_classes


def generate(
    net: Backbone,
    process: Process,
    sampler: Sampler,
    labels: Tensor,
    seed: int,
    guidance: Guidance = NO_GUIDANCE,
    shape: Sequence[int] | None = None,
    batch_size: int = 256,
    first_index: int = 0,
    progress: bool = False,
) -> Tensor:
    """Sample one image per label.

    Sample i depends on (seed, first_index + i), its label and the settings alone: any batch
    size gives the same images, up to the rounding of matrix products.

    Args:
        net: the denoiser; its training modes are left as they were found.
        process: the full process that ``net`` was trained on.
        sampler: how to sample.
        labels: integers, shape (N,).
        seed: sampling seed.
        guidance: classifier-free guidance.
        shape: shape of one sample, (C, H, W); default: the input of ``net``.
        batch_size: samples per batch, >= 1 (guidance doubles what the network sees).
        first_index: number of the first sample, for work that is split.
        progress: show a bar.

    Returns:
        Samples of shape (N, C, H, W), float, on the CPU, in the units of the training data
        ([-1, 1] for pixels).

    Raises:
        InputError: a batch size below 1, labels that the model does not have, or a process or
            sampler that does not fit the model.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: must be at least 1")
    if shape is None:
        shape = (net.in_channels, net.input_size, net.input_size)
    _check_labels(net, labels)
    process.check(net)
    check_sampler(sampler, process, net)
    num_steps = sampler.num_steps(process)
    batches = []
    with evaluating(net), Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("sampling", total=len(labels) * num_steps)
        for start in range(0, len(labels), batch_size):
            chosen = labels[start : start + batch_size]
            first = first_index + start
            noise = SampleNoise(seed, range(first, first + len(chosen)), shape)

            def advance(_index: int, state: Tensor) -> None:
                bar.advance(task, len(state))

            samples = sampler(net, process, noise, chosen, guidance, advance)
            batches.append(samples.cpu())
    return torch.cat(batches) if batches else torch.empty(0, *shape)


def generate_images(
    net: Backbone,
    process: Process,
    sampler: Sampler,
    labels: Tensor,
    seed: int,
    guidance: Guidance = NO_GUIDANCE,
    autoencoder: Autoencoder | None = None,
    batch_size: int = 256,
    first_index: int = 0,
    progress: bool = False,
) -> Tensor:
    """Sample one picture per label, through the decoder for models of latents.

    Args:
        net: the denoiser.
        process: the full process that ``net`` was trained on.
        sampler: how to sample.
        labels: integers, shape (N,).
        seed: sampling seed.
        guidance: classifier-free guidance.
        autoencoder: decoder of the latents; ``None`` for a model of pixels.
        batch_size: samples per batch, >= 1.
        first_index: number of the first sample, for work that is split.
        progress: show a bar.

    Returns:
        Images, uint8 0..255, shape (N, C, H, W), on the CPU.

    Raises:
        InputError: see :func:`generate`; or the decoder takes other channels than ``net`` makes.
    """
    samples = generate(
        net,
        process,
        sampler,
        labels,
        seed,
        guidance,
        batch_size=batch_size,
        first_index=first_index,
        progress=progress,
    )
    if autoencoder is None:
        return to_uint8(samples)
    return decode_images(samples, autoencoder, next(net.parameters()).device)


def decode_images(latents: Tensor, autoencoder: Autoencoder, device: torch.device) -> Tensor:
    """Pictures of scaled latents.

    Args:
        latents: scaled latents, shape (N, C, h, w), N >= 1.
        autoencoder: their decoder; moved to ``device``.
        device: where to decode.

    Returns:
        Images, uint8 0..255, shape (N, 3, h * factor, w * factor), on the CPU; kept as bytes
        batch by batch, because fifty thousand of them would not fit as floats.
    """
    autoencoder.to(device)
    return torch.cat(
        [
            to_uint8(autoencoder.decode(batch.to(device))).cpu()
            for batch in latents.split(autoencoder.batch_size)
        ]
    )


def _check_labels(net: Backbone, labels: Tensor) -> None:
    # An index beyond the class table aborts the whole process on a GPU.
    rows = getattr(net, "num_classes", None)
    if rows is None or not len(labels):
        return
    wrong = labels[(labels < 0) | (labels > rows)]
    if len(wrong):
        raise InputError(
            f"label {int(wrong[0])} does not exist; the model has classes 0..{rows - 1} "
            f"(and {rows}, the null class)"
        )
