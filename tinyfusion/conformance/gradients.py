"""What training asks of a backbone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import recompute_blocks, run_plain
from tinyfusion.conformance.subject import Subject, same
from tinyfusion.errors import InputError
from tinyfusion.states import States, blend


def check_gradients(subject: Subject) -> None:
    """Under a mask per sample and block, the mask and every block's weights get gradients."""
    net = copy.deepcopy(subject.net)
    mask_BL = torch.full((subject.count, net.depth), 0.5, requires_grad=True)

    def masking(index: int, block: nn.Module, states: States, condition: Any) -> States:
        return blend(mask_BL[:, index], run_plain(index, block, states, condition), states)

    net(*subject.inputs, run_block=masking).square().mean().backward()
    for index, block in enumerate(net.blocks):
        for name, parameter in block.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise InputError(
                    f"parameter {name!r} of block {index} gets no gradient: use it in every "
                    "forward, and nowhere detach states or turn gradients off"
                )
        if mask_BL.grad is None or not mask_BL.grad[:, index].any():
            raise InputError(
                f"the mask of block {index} gets no gradient: states must not be detached "
                "between blocks"
            )


def check_recomputed(subject: Subject) -> None:
    """Blocks that are run again in the backward pass give the same gradients."""
    plain, recomputed = copy.deepcopy(subject.net), copy.deepcopy(subject.net)
    runs = []
    recomputed.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    recompute_blocks(recomputed)
    for net in (plain, recomputed):
        net(*subject.inputs).square().mean().backward()
    if len(runs) != 2:
        raise InputError(
            f"block 0 was run {len(runs)} times instead of 2 (forward and backward pass): the "
            "default of run_block must be run_plain, which alone knows how to recompute"
        )
    for (name, wanted), found in zip(
        plain.named_parameters(), recomputed.parameters(), strict=True
    ):
        if not _same_gradient(found.grad, wanted.grad):
            raise InputError(
                f"the gradient of {name!r} is another if blocks are recomputed in the backward "
                "pass: blocks must give the same output when they are run again"
            )


def _same_gradient(found: Tensor | None, wanted: Tensor | None) -> bool:
    return found is wanted if found is None or wanted is None else same(found, wanted)


def check_process(subject: Subject) -> None:
    """The losses of the given process are finite, one per sample."""
    process, batch = subject.process, subject.batch
    assert process is not None
    out = subject.net(*subject.inputs)
    terms = process.loss(out, batch)
    terms |= process.distillation_loss(out, out.detach(), batch, process.learns_variance)
    for name, value in terms.items():
        if value.shape != (len(out),) or not torch.isfinite(value).all():
            raise InputError(
                f"{type(process).__name__} gives {name} of shape {tuple(value.shape)} and "
                f"{'finite' if torch.isfinite(value).all() else 'not finite'} values for an output "
                f"of shape {tuple(out.shape)}: does forward return what the process asks for?"
            )
