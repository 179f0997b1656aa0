"""Many samples in batches, where sample i does not depend on how they are batched.

Shape suffixes: N samples, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.contract import Backbone, evaluating
from tinyfusion.conditioning import Conditioning, as_conditioning
from tinyfusion.errors import InputError
from tinyfusion.pixels import to_uint8
from tinyfusion.processes.contract import Process
from tinyfusion.progress import Progress
from tinyfusion.samplers.contract import OnStep, Sampler, check_sampler
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.seeding import SampleNoise, seed_of

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What samples are computed in by the trainer's precision; float32 by others."""

CLASS_BALANCES = ("random", "balanced")
"""How the classes of samples are chosen: drawn at random, as published, or all equally often."""


def class_labels(count: int, num_classes: int, class_balance: str, seed: int) -> Tensor:
    """Labels of samples 0..count-1, shape (count,); sample i's depends on (seed, i) alone.

    Args:
        count: number of samples.
        num_classes: number of classes.
        class_balance: ``random`` draws each label uniformly; ``balanced`` takes the classes in
            turn, so that their counts are equal, or differ by one.
        seed: sampling seed.

    Raises:
        InputError: another ``class_balance``, or no class.
    """
    check_class_balance(class_balance)
    if num_classes < 1:
        raise InputError("the model is not class-conditional, so that it has no labels to draw")
    if class_balance == "balanced":
        return balanced_labels(count, num_classes)
    # A hash is as good as a draw: its remainder favours a class by less than 1 in 10^15.
    return torch.tensor([seed_of(seed, "label", index) % num_classes for index in range(count)])


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """Labels 0, 1, ..., num_classes-1, 0, 1, ... of shape (count,)."""
    return torch.arange(count) % num_classes


def generate(
    net: Backbone,
    process: Process,
    sampler: Sampler,
    conditioning: Tensor | Conditioning,
    seed: int,
    guidance: Guidance = NO_GUIDANCE,
    shape: Sequence[int] | None = None,
    batch_size: int = 256,
    first_index: int = 0,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample one image per row of the conditioning, such as one per label.

    Sample i depends on (seed, first_index + i), its conditioning and the settings alone: any batch
    size gives the same images, up to the rounding of matrix products.

    Args:
        net: the denoiser; its training modes are left as they were found.
        process: the full process that ``net`` was trained on.
        sampler: how to sample.
        conditioning: of N samples; a tensor of integers, shape (N,), is taken for class labels.
        seed: sampling seed.
        guidance: classifier-free guidance.
        shape: shape of one sample, (C, H, W); default: the input of ``net``.
        batch_size: samples per batch, >= 1 (guidance doubles what the network sees).
        first_index: number of the first sample, for work that is split.
        progress: show a bar.
        dtype: what matrix products are computed in, by autocast; ``None`` for float32.
        on_step: receives every state of every batch.

    Returns:
        Samples of shape (N, C, H, W), float, on the CPU, in the units of the training data
        ([-1, 1] for pixels).

    Raises:
        InputError: a batch size below 1, labels that the model does not have, or a process,
            sampler or guidance that does not fit the model.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: must be at least 1")
    if shape is None:
        shape = (net.in_channels, net.input_size, net.input_size)
    conditioning = as_conditioning(conditioning)
    conditioning.check(net)
    process.check(net)
    check_sampler(sampler, process, net)
    num_steps = sampler.num_steps(process)
    batches = []
    device = next(net.parameters()).device
    with (
        evaluating(net),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
        Progress("sampling", len(conditioning), bar=progress, seconds=None) as bar,
    ):
        for start in range(0, len(conditioning), batch_size):
            chosen = conditioning[start : start + batch_size]
            first = first_index + start
            noise = SampleNoise(seed, range(first, first + len(chosen)), shape)

            def advance(index: int, state: Tensor) -> None:
                bar(len(state) / num_steps)
                if on_step is not None:
                    on_step(index, state)

            samples = sampler(net, process, noise, chosen, guidance, advance)
            batches.append(samples.cpu())
    return torch.cat(batches) if batches else torch.empty(0, *shape)


def check_class_balance(class_balance: str, key: str = "class_balance") -> None:
    """Refuse a way of choosing classes that is none of `CLASS_BALANCES`.

    Args:
        class_balance: the way.
        key: where it is configured, for the message.

    Raises:
        InputError: ``class_balance`` is not one of them.
    """
    if class_balance not in CLASS_BALANCES:
        raise InputError(
            f"{key}={class_balance!r} is not known; valid: {', '.join(CLASS_BALANCES)}"
        )


@dataclass(frozen=True)
class Drawing:
    """Many pictures of one model, drawn batch by batch and in any order.

    Picture i depends on (seed, i), its conditioning and the settings alone. With equal
    ``batch_size`` it is the same to the bit, wherever and whenever its batch is drawn; with another
    one matrix products are rounded otherwise, and now and then a pixel is off by one of 255. Only
    adaptive samplers, whose steps suit the whole batch, differ more, within their tolerance.

    Attributes:
        net: the denoiser.
        process: the full process that ``net`` was trained on.
        sampler: how to sample.
        conditioning: of N pictures.
        seed: sampling seed.
        guidance: classifier-free guidance.
        autoencoder: decoder of the latents; ``None`` for a model of pixels.
        batch_size: pictures per batch, >= 1.
        dtype: see :func:`generate`.
    """

    net: Backbone
    process: Process
    sampler: Sampler
    conditioning: Conditioning
    seed: int
    guidance: Guidance = NO_GUIDANCE
    autoencoder: Autoencoder | None = None
    batch_size: int = 256
    dtype: torch.dtype | None = None

    def __len__(self) -> int:
        return len(self.conditioning)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one picture, (C, H, W)."""
        size, factor = self.net.input_size, 1
        if self.autoencoder is None:
            return (self.net.in_channels, size, size)
        factor = self.autoencoder.factor
        return (3, size * factor, size * factor)

    @property
    def num_batches(self) -> int:
        """Number of batches; the last one may be smaller."""
        return -(-len(self) // self.batch_size)

    def rows(self, batch: int) -> range:
        """Numbers of the pictures of a batch, 0..num_batches-1."""
        first = batch * self.batch_size
        return range(first, min(first + self.batch_size, len(self)))

    def draw(self, batch: int, on_step: OnStep | None = None) -> Tensor:
        """The pictures of a batch.

        Args:
            batch: its number, 0..num_batches-1.
            on_step: receives every state.

        Returns:
            Images, uint8 0..255, shape (B, C, H, W), on the CPU.

        Raises:
            InputError: see :func:`generate`; or the decoder takes other channels than ``net``
                makes.
        """
        rows = self.rows(batch)
        samples = generate(
            self.net,
            self.process,
            self.sampler,
            self.conditioning[rows.start : rows.stop],
            self.seed,
            self.guidance,
            batch_size=self.batch_size,
            first_index=rows.start,
            dtype=self.dtype,
            on_step=on_step,
        )
        if self.autoencoder is None:
            return to_uint8(samples)
        return decode_images(samples, self.autoencoder, next(self.net.parameters()).device)

    def draw_all(
        self, progress: bool = False, batches: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """All pictures, batch by batch.

        Args:
            progress: show a bar.
            batches: numbers of batches, to draw only those.
        """
        steps = self.sampler.num_steps(self.process)
        batches = range(self.num_batches) if batches is None else batches
        total = sum(len(self.rows(batch)) for batch in batches)
        with Progress("sampling", total, bar=progress, seconds=None) as bar:
            for batch in batches:
                yield self.draw(batch, lambda _, state: bar(len(state) / steps))


def generate_images(
    net: Backbone,
    process: Process,
    sampler: Sampler,
    conditioning: Tensor | Conditioning,
    seed: int,
    guidance: Guidance = NO_GUIDANCE,
    autoencoder: Autoencoder | None = None,
    batch_size: int = 256,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The pictures of a :class:`Drawing` in memory, for the few that a figure shows.

    Arguments are the attributes of `Drawing`; ``conditioning`` may be a tensor of class labels.

    Returns:
        Images, uint8 0..255, shape (N, C, H, W), on the CPU.
    """
    drawing = Drawing(
        net,
        process,
        sampler,
        as_conditioning(conditioning),
        seed,
        guidance,
        autoencoder,
        batch_size,
        dtype,
    )
    return torch.cat(list(drawing.draw_all()))


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
