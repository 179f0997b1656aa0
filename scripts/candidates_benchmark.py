"""How much faster many candidates are scored together: digits teacher, neighbours in a long list.

    python scripts/candidates_benchmark.py [--candidates 100000] [--run 2000] [--samples 128]

Draws random choices of half of the blocks, sorts them, takes a run of neighbours from the middle
and scores it both ways in turn, slice by slice: one candidate after the other, and by walking
through the tree of what they share. The saved block evaluations bound the
gain, apart from what larger batches save.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from tinyfusion.backbones.contract import Backbone, running_only
from tinyfusion.budget import Budget
from tinyfusion.checkpoints import load
from tinyfusion.data.digits import Digits
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.metrics.prefix_tree import Kept, tree_nodes
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.pruners.contract import calibration_batch
from tinyfusion.pruners.random import draw_sets


def one_by_one(net: Backbone, calibration: HeldOutLoss, kept: Kept) -> float:
    """Loss of one candidate: the blocks that it drops are not run."""
    return calibration(net, running_only(kept))["loss"]


def seconds(device: torch.device) -> float:
    """The time: of the processor, so that other work on the machine does not count, or of a GPU."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def cut(run: Sequence[Kept], slices: int) -> list[Sequence[Kept]]:
    """The run in slices of about one length; nothing is shared between them."""
    size = -(-len(run) // slices)
    return [run[first : first + size] for first in range(0, len(run), size)]


def measure(
    net: Backbone, calibration: HeldOutLoss, run: Sequence[Kept], slices: int
) -> tuple[list[float], list[float], float]:
    """Seconds per slice one by one and together, and the largest difference of a loss."""
    device = next(net.parameters()).device
    scores = CandidateScores(net, calibration)
    apart, together, difference = [], [], 0.0
    for some in cut(run, slices):
        began = seconds(device)
        wanted = [one_by_one(net, calibration, kept) for kept in some]
        between = seconds(device)
        found = [loss for loss, _ in scores.losses(some)]
        together.append(seconds(device) - between)
        apart.append(between - began)
        errors = [abs(a - b) / abs(a) for a, b in zip(wanted, found, strict=True)]
        difference = max(difference, *errors)
    return apart, together, difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=100_000, help="length of the whole list")
    parser.add_argument("--run", type=int, default=2000, help="neighbours that are scored")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--checkpoint", default="digits", help="a model of 8x8 digits")
    parser.add_argument("--keep", type=int, help="blocks kept; default: half of them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--slices", type=int, default=10, help="turns that each way gets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    net = load(arguments.checkpoint).to(device)
    keep = arguments.keep or net.depth // 2
    calibration = calibration_batch(GaussianDiffusion(), Digits(), arguments.samples, seed=0)
    sets = draw_sets(Budget.of(net.units(), keep), arguments.candidates, seed=0)
    nodes, naive = tree_nodes(sets), keep * len(sets)
    print(
        f"{len(sets):,} choices of {keep} of {net.depth} blocks: {nodes:,} block evaluations "
        f"instead of {naive:,}, {naive / nodes:.2f} times fewer"
    )
    middle = max(0, (len(sets) - arguments.run) // 2)
    run = sets[middle : middle + arguments.run]
    bound = keep * len(run) / sum(map(tree_nodes, cut(run, arguments.slices)))
    list(CandidateScores(net, calibration).losses(run[:32]))  # warms up
    apart, together, difference = measure(net, calibration, run, arguments.slices)
    timing = ", seconds of one thread" if device.type == "cpu" else ""
    ratios = [a / b for a, b in zip(apart, together, strict=True)]
    print(
        f"{len(run):,} neighbours from the middle, {arguments.samples} samples, on {device}"
        f"{timing}, {len(ratios)} slices in turn:\n"
        f"  one by one {len(run) / sum(apart):8.1f} candidates/s\n"
        f"  together   {len(run) / sum(together):8.1f} candidates/s\n"
        f"  {sum(apart) / sum(together):.2f} times as fast (slices: median "
        f"{statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}); "
        f"bound by block evaluations {bound:.2f}\n"
        f"  losses differ by at most {difference:.1e} (relative)"
    )


if __name__ == "__main__":
    main()
