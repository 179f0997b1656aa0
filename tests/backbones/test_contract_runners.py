"""Every runner runs its blocks through one place, which may recompute them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tinyfusion.backbones import forwards
from tinyfusion.backbones.contract import forward_with_states, recompute_blocks
from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.gating.gated_backbone import GatedBackbone
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.pruners.shortgpt import block_influence
from tinyfusion.scheme import parse_scheme


@pytest.fixture
def net() -> DiT:
    net = DiT(4, 2, 1, hidden_size=16, depth=4, num_heads=2, num_classes=3, gate_bias_init=0.5)
    torch.nn.init.normal_(net.final_layer.linear.weight)
    return net


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(3, 1, 4, 4), torch.arange(3), torch.arange(3)


def split(inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ClassLabels]:
    *data, y = inputs
    return tuple(data), ClassLabels(y)


def runners(net: DiT, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    gates = PatternGates(parse_scheme("1:2", 4, ()))
    gumbel_BK = torch.zeros(3, gates.num_draws)

    class Inputs:
        def predict(self, net: DiT, run_block) -> None:
            net(*inputs, run_block=run_block)

    return {
        "plain": net(*inputs),
        "states": forward_with_states(net, *split(inputs), [1, 3])[0],
        "gated": GatedBackbone(net, gates)(*split(inputs), gumbel_BK),
        "influence": block_influence(net, Inputs()),
    }


def test_recomputed_blocks_give_the_same_and_run_once_more_per_backward(net, inputs) -> None:
    calls = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    wanted = runners(net, inputs)
    first = len(calls)  # the gated forward runs a block for some samples at a time
    recompute_blocks(net)
    found = runners(net, inputs)
    assert len(calls) == 2 * first
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    for number, name in enumerate(("plain", "states", "gated"), 1):
        found[name].sum().backward()
        assert len(calls) == 2 * first + 4 * number, name
    assert not found["influence"].requires_grad


def test_nothing_is_recomputed_without_gradients_or_when_undone(net, inputs, monkeypatch) -> None:
    monkeypatch.setattr(forwards, "checkpoint", lambda *_, **__: pytest.fail("recomputed"))
    recompute_blocks(net)
    with torch.no_grad():
        net(*inputs)
    recompute_blocks(net, False)
    net(*inputs).sum().backward()


def test_states_after_recomputed_blocks_carry_gradients(net, inputs) -> None:
    grads = []
    for recompute in (False, True):
        recompute_blocks(net, recompute)
        _, states = forward_with_states(net, *split(inputs), [2])
        (grad,) = torch.autograd.grad(states[2].square().sum(), [net.blocks[0].mlp.fc1.weight])
        grads.append(grad)
    assert grads[0].any()
    torch.testing.assert_close(grads[1], grads[0])
