"""What a sampler gets and gives.

Shape suffixes: B batch, C data channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import Conditioning
from tinyfusion.errors import InputError
from tinyfusion.processes.contract import Process
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance

NoiseSource = Callable[[], Tensor]
"""``noise() -> (B, C, H, W)``: the next standard normal draw for the whole batch."""

OnStep = Callable[[int, Tensor], object]
"""``on_step(i, state)``: receives the state after step i, i = 0 being the noisiest step."""


class Sampler(Protocol):
    """Turns noise into data; what ``conf/sampler/*.yaml`` builds.

    A sampler that not every network suits may also have a method ``check(net)``, which raises
    `InputError` before anything is sampled.

    Attributes:
        process_kind: kind of process that it walks.
    """

    process_kind: str

    def num_steps(self, process: Any) -> int:
        """Number of steps on ``process``, each of which calls ``on_step`` once.

        Raises:
            InputError: the sampler's setting does not fit the process.
        """

    def __call__(
        self,
        net: Backbone,
        process: Any,
        noise: NoiseSource,
        conditioning: Conditioning,
        guidance: Guidance = NO_GUIDANCE,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample one batch.

        Args:
            net: the denoiser, in eval mode.
            process: the full process that ``net`` was trained on.
            noise: gives the draws, one after the other.
            conditioning: of the B samples, on any device.
            guidance: classifier-free guidance.
            on_step: receives every state.

        Returns:
            Samples of shape (B, C, H, W) on the device of ``net``.
        """


def check_sampler(
    sampler: Sampler,
    process: Process,
    net: Backbone,
    key: str = "sampler",
    advice: Callable[[], str] = lambda: "choose another sampler",
) -> None:
    """Refuse a sampler that was made for another process or network.

    Args:
        sampler: the sampler; a user's own may lack ``process_kind``.
        process: the process.
        net: the network.
        key: where it is configured, for the message.
        advice: gives the end of the message about a sampler of another kind.

    Raises:
        InputError: ``sampler`` walks processes of another kind, its steps don't fit ``process``, or
            it does not suit ``net``.
    """
    kind = getattr(sampler, "process_kind", process.kind)
    if kind != process.kind:
        raise InputError(
            f"{key}: {type(sampler).__name__} samples by processes of kind {kind!r}, but "
            f"process={type(process).__name__} is of kind {process.kind!r}; {advice()}"
        )
    sampler.num_steps(process)
    check = getattr(sampler, "check", None)
    if check is not None:
        check(net)
