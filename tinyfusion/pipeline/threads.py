"""How many threads of the CPU a small network is worth.

Threads wait for each other after every operation. Where other work keeps a processor busy they wait
for it as well, each time, and a small network has little else to do. On two processors, forward and
backward of a DiT with one thread and with two (seconds of one over seconds of two, medians of 7):

| width | blocks | batch | multiply-accumulates of a block | idle | busy |
|--:|--:|--:|--:|--:|--:|
| 32 | 28 | 64 | 14 M | 1.53 | 0.42 |
| 64 | 12 | 64 | 54 M | 1.66 | 0.01 |
| 128 | 12 | 64 | 212 M | 1.51 | 0.05 |
| 128 | 12 | 32 | 441 M | 1.63 | 0.77 |
| 256 | 8 | 16 | 847 M | 1.69 | 0.64 |
| 384 | 4 | 4 | 2,022 M | 1.84 | 0.87 |

Below the border (300 M) a second thread makes a step 1.7 times as fast at best, and up to a hundred
times as slow; above it 1.9 times as fast or 1.6 times as slow. The load of the moment does not
decide, as the number of threads changes how sums are rounded: a command gives the same on a busy
machine as on an idle one.
"""

from __future__ import annotations

import logging
import os

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.metrics.speed import macs
from tinyfusion.training.settings import TrainerSettings

log = logging.getLogger(__name__)

WORTH_SEVERAL = 300e6
"""Multiply-accumulates of one block on one batch from which on all threads are used."""

ALL = torch.get_num_threads()
"""Threads that torch takes by itself."""

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Of the environment; one that is set has the last word."""


def set_threads(settings: TrainerSettings) -> None:
    """Set the configured number of threads, or torch's own until the network is known."""
    torch.set_num_threads(settings.threads or ALL)


def choose_threads(
    net: Backbone, settings: TrainerSettings, device: torch.device, images: int
) -> None:
    """Set the number of threads by the size of a network, and say so in one line.

    Nothing is done where the number is configured, or set by the environment, on a GPU, where
    there is one thread anyway, or where the work of a network can't be counted.

    Args:
        net: the network.
        settings: the job's, of which ``threads`` is ``None`` for this rule.
        device: where the network runs.
        images: samples that it is given at a time.
    """
    given = settings.threads is not None or any(os.environ.get(name) for name in VARIABLES)
    if given or device.type != "cpu" or ALL == 1:
        return
    try:
        work = macs(net) * images / len(net.blocks)
    except Exception as error:  # of a user's network; it is only about speed
        log.debug("threads: left at %d, as the work is not known: %s", ALL, error)
        return
    threads = 1 if work < WORTH_SEVERAL else ALL
    torch.set_num_threads(threads)
    log.info(
        "threads: %d of %d, as a block does %.0f M multiply-accumulates on a batch of %d, %s "
        "%.0f M (trainer.threads=N sets another number)",
        *(threads, ALL, work / 1e6, images),
        *("below" if threads == 1 else "at least", WORTH_SEVERAL / 1e6),
    )
