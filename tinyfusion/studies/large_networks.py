"""Text-to-image networks of 12B and 20B parameters, counted without values and without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import count_parameters
from tinyfusion.backbones.meta import counting_macs
from tinyfusion.metrics.memory import Activations
from tinyfusion.pipeline.estimate import fake
from tinyfusion.training.recipes import tinydit_d14


class Counted(NamedTuple):
    """What was counted of a network.

    Attributes:
        parameters: all of them.
        low_rank: parameters of low-rank updates of all its linear layers.
        macs: multiply-accumulates of a forward of one sample.
        activations: bytes that a sample keeps for the backward pass.
        recomputed: the same with blocks recomputed.
        block: what one block keeps of it, and holds while it is computed again.
        gathered: parameters that are whole on a GPU at a time although they are sharded: two
            blocks, and what belongs to none.
    """

    parameters: int
    low_rank: int
    macs: int
    activations: int
    recomputed: int
    block: int
    gathered: int


@dataclass(frozen=True)
class LargeNetwork:
    """A network of diffusers, which is built without values.

    Attributes:
        name: what it is called.
        kind: name of its class in diffusers.
        arguments: of its constructor.
        inputs: arguments of its forward for so many samples of 1024 x 1024 pixels and 512 tokens
            of text.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]
    inputs: Callable[[int], dict[str, Any]]

    @cached_property
    def counted(self) -> Counted:
        """What a forward takes, see `Counted`."""
        with fake():
            net = self._built()
            linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
            lists = [m for m in net.children() if isinstance(m, nn.ModuleList)]
            blocks = [count_parameters(block) for blocks in lists for block in blocks]
            with counting_macs() as so_far, torch.no_grad():
                net(**self.inputs(1))
        rank = tinydit_d14.lora.rank
        kept, recomputed = (self._activations(recompute) for recompute in (False, True))
        return Counted(
            count_parameters(net),
            sum(rank * (m.in_features + m.out_features) for m in linears),
            so_far(),
            kept,
            recomputed,
            (kept - recomputed) // len(blocks),
            2 * max(blocks) + count_parameters(net) - sum(blocks),
        )

    def _built(self) -> Any:
        import diffusers  # takes seconds

        return getattr(diffusers, self.kind)(**self.arguments).train()

    def _activations(self, recompute: bool) -> int:
        """Bytes that one more sample keeps for the backward pass, under bfloat16 by autocast."""
        # One sample less: copies of weights, which autocast keeps as well, are no activations.
        return self._kept(2, recompute) - self._kept(1, recompute)

    def _kept(self, samples: int, recompute: bool) -> int:
        with fake():
            net, inputs = self._built(), self.inputs(samples)
            if recompute:
                net.enable_gradient_checkpointing()
            tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
            owned = [*net.parameters(), *net.buffers(), *tensors]
            with Activations(owned) as counted, torch.autocast("cpu", torch.bfloat16):
                out = net(**inputs)
                assert out[0].requires_grad
                return counted.bytes


TEXT, SIDE = 512, 64
"""Tokens of a text, and along one side of a picture of 1024 pixels."""


def _joint(text_width: int) -> Callable[[int], dict[str, Any]]:
    return lambda samples: {
        "hidden_states": torch.empty(samples, SIDE * SIDE, 64),
        "encoder_hidden_states": torch.empty(samples, TEXT, text_width),
        "timestep": torch.empty(samples),
        "return_dict": False,
    }


def _flux_inputs(samples: int) -> dict[str, Any]:
    return _joint(4096)(samples) | {
        "pooled_projections": torch.empty(samples, 768),
        "img_ids": torch.zeros(SIDE * SIDE, 3),
        "txt_ids": torch.zeros(TEXT, 3),
        "guidance": torch.empty(samples),
    }


def _qwen_inputs(samples: int) -> dict[str, Any]:
    return _joint(3584)(samples) | {"img_shapes": [[(1, SIDE, SIDE)]] * samples}


NETWORKS = (
    LargeNetwork(
        "12B (FLUX.1-dev)", "FluxTransformer2DModel", {"guidance_embeds": True}, _flux_inputs
    ),
    LargeNetwork("20B (Qwen-Image)", "QwenImageTransformer2DModel", {}, _qwen_inputs),
)
