"""What a process has to offer so that backbones can be trained, distilled and scored with it.

A process turns clean data into inputs of a network (:meth:`Process.corrupt`) and computes the loss
of its output (:meth:`Process.loss`, :meth:`Process.distillation_loss`). Training, recovery and
held-out scores know nothing else of it. Data is drawn by samplers, each made for one kind of
process.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.errors import InputError


class Draws(Protocol):
    """Random numbers for the samples of one batch, on the device of the data.

    Draws of different purposes are independent; the same purpose gives the same draws again.
    """

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), shape (B, *shape)."""

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal draws, shape (B, *shape)."""

    def shared(self, purpose: str) -> float:
        """One uniform draw in [0, 1) that all samples of the batch have in common."""


class Corrupted(Protocol):
    """Corrupted data; a process may keep more in it for its losses.

    Attributes:
        clean: the data, shape (B, C, H, W).
        inputs: what the network is given before its conditioning, each of shape (B, ...); see
            `tinyfusion.backbones.contract.predict`.
    """

    clean: Tensor
    inputs: tuple[Tensor, ...]


class Process(ABC):
    """Base class of every process.

    Attributes:
        kind: which backbones it takes: those of this ``process_kind``.
        learns_variance: whether networks may predict a variance, so that distillation can compare
            variances.
        strata: into how many batches fixed data is cut, fewer if there is little of it, so that
            draws which the samples of a batch share cover their range.
        clean_draw: the draw of ``times`` that stands for clean data: 0, or 1 where time runs from
            noise to data.
        times: the network's second input, one number per sample: ``"whole"`` steps from 0 to
            ``num_steps - 1``, or ``"real"`` numbers; ``None`` if its second input is not a time.
    """

    kind: ClassVar[str]
    learns_variance: ClassVar[bool] = False
    strata: ClassVar[int] = 1
    clean_draw: ClassVar[float] = 0.0
    times: ClassVar[Literal["whole", "real"] | None] = None

    def check(self, net: Backbone, name: str = "the model") -> None:
        """Refuse a model that was made for another process; all commands ask before any work.

        Args:
            net: the model.
            name: what the user called the model.

        Raises:
            InputError: its times and targets mean something else.
        """
        if net.process_kind != self.kind:
            word = type(net).family
            advice = f", or let backbone={word} or a size of it choose one" if word else ""
            advice += "; without process= a model folder brings its own"
            raise InputError(
                f"{name}: a {type(net).__name__} needs a process of kind {net.process_kind!r}, "
                f"but process={type(self).__name__} is of kind {self.kind!r}; "
                f"choose another process={advice}"
            )

    @classmethod
    def from_training_args(cls, args: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        """Constructor arguments by the recorded ones of a public training script.

        Args:
            args: what the script recorded.

        Returns:
            Each with the key that it was read from; none for a script that records none.
        """
        return {}

    def noise_level(self, time: float) -> float:
        """Standard deviation of the noise over the scale of the data at a time, from 0 to infinity.

        Args:
            time: a time of the process; a whole number where they are.

        Raises:
            InputError: data of this process is not noised as a whole.
        """
        raise InputError(
            f"process={type(self).__name__} has no noise level that guidance could go by; give "
            "guidance interval=null"
        )

    @abstractmethod
    def corrupt(self, clean: Tensor, draws: Draws) -> Any:
        """Make a network's inputs from clean data.

        Args:
            clean: data, shape (B, C, H, W).
            draws: all randomness that there is.

        Returns:
            A `Corrupted`.
        """

    @abstractmethod
    def loss(self, out: Tensor, batch: Any) -> dict[str, Tensor]:
        """The published training loss, per sample.

        Args:
            out: output of the network, shape (B, ...).
            batch: what `corrupt` gave.

        Returns:
            Terms of shape (B,): at least ``mse`` and ``loss``, which is minimised.
        """

    @abstractmethod
    def distillation_loss(
        self, student_out: Tensor, teacher_out: Tensor, batch: Any, variance: bool
    ) -> dict[str, Tensor]:
        """Distance of two networks' outputs for the same inputs, per sample.

        Args:
            student_out: shape (B, ...).
            teacher_out: same shape, no gradient.
            batch: what both networks saw.
            variance: compare predicted variances, too; only if ``learns_variance``.

        Returns:
            Terms of shape (B,), among them their sum ``kd``.
        """


def mean_flat(x: Tensor) -> Tensor:
    """Mean over everything but the batch, shape (B,)."""
    return x.flatten(1).mean(1)


def batch_means(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average every per-sample term over the batch."""
    return {name: value.mean() for name, value in terms.items()}
