"""How the global batch is shared out among devices and micro-batches."""

from __future__ import annotations

from typing import NamedTuple

from tinyfusion.errors import InputError


class Split(NamedTuple):
    """One optimiser step's images: ``devices x micro_batches x images``.

    Attributes:
        devices: devices of all nodes.
        micro_batches: micro-batches per device that are accumulated into one step.
        images: images that a device takes at once.
    """

    devices: int
    micro_batches: int
    images: int

    def __str__(self) -> str:
        return (
            f"{self.devices} device(s) x {self.micro_batches} micro-batch(es) x "
            f"{self.images} image(s)"
        )


def split_batch(key: str, global_batch: int, devices: int, micro_batch: int | None) -> Split:
    """Fewest micro-batches of equal size that a device can take.

    Args:
        key: configuration key of the global batch, for the message.
        global_batch: images per optimiser step over all devices.
        devices: devices of all nodes.
        micro_batch: most images that a device takes at once; ``None``: any number.

    Raises:
        InputError: the devices can't share the batch evenly.
    """
    if global_batch % devices:
        below = global_batch - global_batch % devices
        valid = [n for n in (below, below + devices) if n > 0]
        fitting = [n for n in range(1, devices) if global_batch % n == 0]
        raise InputError(
            f"{key}={global_batch} can't be shared evenly among {devices} devices (trainer.devices "
            f"x trainer.num_nodes); valid: {fitting[-1]} device(s), or a multiple of {devices}, "
            f"such as {' or '.join(map(str, valid))}"
        )
    share = global_batch // devices
    largest = share if micro_batch is None else micro_batch
    images = max(size for size in range(1, share + 1) if share % size == 0 and size <= largest)
    return Split(devices, share // images, images)
