"""Does a backbone keep the contract? ``check_backbone(net)`` names what its author has to fix.

The contract is `tinyfusion.backbones.contract.Backbone`; docs/own_backbone.md explains it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conformance import branches, files, forwards, gradients, structure
from tinyfusion.conformance.subject import Subject
from tinyfusion.errors import InputError
from tinyfusion.processes.contract import Process

__all__ = ["check_backbone"]

T = TypeVar("T")

_OF_THE_NETWORK: dict[str, Callable[[Backbone], None]] = {
    "it has a list of blocks": structure.check_blocks,
    "it states the sizes of its data": structure.check_attributes,
    "stacks have borders": structure.check_borders,
    "a null label stands for no class": structure.check_null_label,
    "it can be rebuilt from its config": structure.check_config,
    "it can be copied": structure.check_copy,
}
_OF_FORWARDS: dict[str, Callable[[Subject], None]] = {
    "its example inputs fit": forwards.check_examples,
    "the same inputs give the same output": forwards.check_repeats,
    "run_block runs every block once, in order": forwards.check_order,
    "what run_block returns is used": forwards.check_passes_on,
    "samples of a batch do not see each other": forwards.check_rows,
    "blocks can be told the condition of some samples": forwards.check_condition_rows,
    "its conditioning may be the null": forwards.check_no_class,
    "a pruned network computes what skipping its blocks does": forwards.check_pruned,
    "a network without a branch computes what skipping it does": branches.check_branches,
    "gradients reach every block and mask": gradients.check_gradients,
    "recomputed blocks give the same gradients": gradients.check_recomputed,
    "a model folder gives it back": files.check_folder,
    "the process can train it": gradients.check_process,
}


def check_backbone(net: Backbone, process: Process | None = None, count: int = 3) -> list[str]:
    """Check that a backbone can be trained, gated, scored, pruned, recovered, saved and loaded.

    Everything is done on copies, on the CPU, in float32 and eval mode, with weights moved off
    their start values (where new networks are often zero) and inputs from a fixed seed. A few
    forwards per block are run: take small sizes, but more than one block.

    Args:
        net: an instance of the class to check.
        process: one that the backbone is to be trained with. Its inputs are used then, and its
            losses are computed; without it, inputs are made from ``net.example_inputs()``.
        count: samples per batch, at least 2.

    Returns:
        What was found to hold, one line each; ``process`` left out leaves out the last, and blocks
        that name no branches the one about these.

    Raises:
        InputError: the first thing that does not hold, and what to do about it.

    Example:
        >>> check_backbone(PlainViT(depth=4), GaussianDiffusion())  # in a test of your own
    """
    if not isinstance(net, Backbone):
        raise InputError(
            f"{type(net).__name__} is no backbone: derive its class from tinyfusion.Backbone"
        )
    if count < 2:
        raise InputError(f"count={count} must be at least 2: samples are compared")
    held = []
    # Constructors and forwards may draw from the global generator; callers see nothing of it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for title, check in _OF_THE_NETWORK.items():
            _ask(net, title, check, net)
            held.append(title)
        title = "inputs can be made for it"
        subject = _ask(net, title, Subject.of, net, process, count)
        for title, check_forwards in _OF_FORWARDS.items():
            if check_forwards is gradients.check_process and process is None:
                continue
            if check_forwards is branches.check_branches and not branches.has_branches(net):
                continue
            _ask(net, title, check_forwards, subject)
            held.append(title)
    return held


def _ask(net: Backbone, title: str, check: Callable[..., T], *arguments: Any) -> T:
    """Run one check; whatever fails becomes one line that begins with class and title."""
    prefix = f"{type(net).__name__}: not so: {title}"
    try:
        return check(*arguments)
    except InputError as error:
        raise InputError(f"{prefix}: {' '.join(str(error).split())}") from error
    except Exception as error:  # the author's own code, which may fail in any way
        reason = " ".join(str(error).split())
        raise InputError(f"{prefix}: {type(error).__name__}: {reason}") from error
