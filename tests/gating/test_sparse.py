"""Dropped pairs of sample and unit take no backward pass, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, recompute_blocks
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.budget import Budget
from tinyfusion.conditioning import ClassLabels, Conditioning
from tinyfusion.gating.deltas import Full, Lora
from tinyfusion.gating.draws import GumbelTopK
from tinyfusion.gating.gated_backbone import GatedBackbone
from tinyfusion.gating.sparse import rows_of_units
from tinyfusion.gating.unit_gates import UnitGates
from tinyfusion.metrics.memory import Activations
from tinyfusion.seeding import Rows, StepNoise
from tinyfusion.units import BLOCKS, BRANCHES

B = 8


class Setting(NamedTuple):
    net: Backbone
    inputs: tuple[Tensor, ...]
    conditioning: Conditioning


def randomised(net: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return net.double()


@pytest.fixture
def make(two_streams) -> Callable[[str], Setting]:
    def build(name: str) -> Setting:
        draws = torch.Generator().manual_seed(6)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draws, dtype=torch.float64)

        labels = ClassLabels(torch.arange(B) % 3)
        t = torch.arange(B) * 100
        if name == "dit":
            net = randomised(DiT(4, 2, 2, 16, 4, 2, num_classes=3))
            return Setting(net, (randn(B, 2, 4, 4), t), labels)
        if name == "mar":
            sizes = {"num_heads": 2, "in_channels": 2, "num_classes": 3, "buffer_size": 2}
            net = randomised(MAR(2, 16, 2, 2, head_depth=1, head_width=16, **sizes))
            hidden = torch.tensor([[1, 3]]).expand(B, -1)
            times = t[:, None, None].expand(-1, 1, 4)
            return Setting(net, (randn(B, 2, 2, 2), hidden, randn(B, 1, 4, 2), times), labels)
        net = randomised(two_streams.TwoStreams(4))
        return Setting(net, (randn(B, 1, 4, 4), t), two_streams.captions(torch.arange(B)))

    return build


def both(
    setting: Setting, kind: str, delta: Any, recompute: bool = False, first: float = 0.0
) -> list[dict[str, Tensor]]:
    """Output and all gradients, dense and sparse."""
    found = []
    for dense in (True, False):
        net = copy.deepcopy(setting.net)
        units = net.units(kind)
        torch.manual_seed(7)
        delta.attach(net)
        for name, parameter in net.named_parameters():
            if "lora_B" in name:  # zeros at the start
                nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(8))
        gates = UnitGates(Budget.of(units, len(units) // 2), GumbelTopK()).double()
        gates.temperature, gates.scale = 2.0, 10.0
        with torch.no_grad():
            gates.logits_L[0] += first
        recompute_blocks(net.double(), recompute)
        model = GatedBackbone(net, gates, units, dense)
        noise = StepNoise(1, "test").gumbel("gumbel", Rows(0, 0, B), gates.num_draws).double()
        inputs = (setting.inputs[0].clone().requires_grad_(), *setting.inputs[1:])
        out = model(inputs, setting.conditioning, noise)
        out.sin().square().mean().backward()
        named = model.named_parameters()
        gradients = {name: p.grad for name, p in named if p.requires_grad}
        found.append({"out": out.detach(), "inputs": inputs[0].grad} | gradients)
    return found


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("delta", [Lora(2, 4.0), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("kind", [BLOCKS, BRANCHES])
@pytest.mark.parametrize("name", ["dit", "mar", "two streams"])
def test_values_and_gradients_are_those_of_the_dense_form(
    make, name: str, kind: str, delta: Any, recompute: bool
) -> None:
    dense, sparse = both(make(name), kind, delta, recompute)
    assert dense.keys() == sparse.keys()
    for key, value in dense.items():
        assert (value is None) == (sparse[key] is None), key
        if value is not None:
            torch.testing.assert_close(sparse[key], value, rtol=1e-9, atol=1e-13, msg=key)
    assert (dense["gates.logits_L"] != 0).all()


@pytest.mark.parametrize("first", [-5.0, 5.0], ids=["no sample", "every sample"])
def test_a_unit_that_all_samples_drop_or_keep_is_no_exception(make, first: float) -> None:
    dense, sparse = both(make("dit"), BLOCKS, Full(), first=first)
    for key, value in dense.items():
        assert (value is None) == (sparse[key] is None), key
        if value is not None:
            torch.testing.assert_close(sparse[key], value, rtol=1e-9, atol=1e-13, msg=key)
    of_first = [v for key, v in sparse.items() if key.startswith("net.blocks.0.")]
    assert len(of_first) == 10
    assert all(bool(v.any()) == (first > 0) for v in of_first)  # zeros, not none


def test_half_of_the_gradients_twice_as_large_add_up_to_all(make) -> None:
    setting = make("dit")
    gates = UnitGates(Budget.of(setting.net.units(), 2), GumbelTopK()).double()
    gates.temperature, gates.scale = 2.0, 10.0
    noise = StepNoise(1, "test").gumbel("gumbel", Rows(0, 0, B), 4).double()
    sampled_BL = torch.rand(B, 4, generator=torch.Generator().manual_seed(2)) < 0.5

    def gradients(share: float, looked: Tensor | None) -> dict[str, Tensor]:
        model = GatedBackbone(copy.deepcopy(setting.net), gates, gate_gradients=share)
        model.zero_grad()
        model(setting.inputs, setting.conditioning, noise, looked).square().mean().backward()
        named = model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    whole = gradients(1.0, None)
    ends = [gradients(0.5, looked) for looked in (sampled_BL, ~sampled_BL)]
    for name, gradient in whole.items():
        mean = (ends[0][name] + ends[1][name]) / 2
        torch.testing.assert_close(mean, gradient, rtol=1e-9, atol=1e-13)
        assert torch.equal(ends[0][name], ends[1][name]) == (name != "gates.logits_L"), name


def test_pairs_that_give_no_gradient_are_not_run(make) -> None:
    setting, ran = make("dit"), []
    for block in setting.net.blocks:
        block.register_forward_pre_hook(
            lambda _, args: ran.append((torch.is_grad_enabled(), len(args[0])))
        )
    gates = UnitGates(Budget.of(setting.net.units(), 2), GumbelTopK())
    noise = StepNoise(1, "test").gumbel("gumbel", Rows(0, 0, B), 4)

    def pairs(share: float, looked: Tensor | None) -> dict[bool, int]:
        ran.clear()
        model = GatedBackbone(setting.net, gates, gate_gradients=share)
        model(setting.inputs, setting.conditioning, noise, looked)
        return {enabled: sum(n for on, n in ran if on == enabled) for enabled in (True, False)}

    assert pairs(1.0, None) == {True: 2 * B, False: 2 * B}
    assert pairs(0.5, torch.zeros(B, 4, dtype=torch.bool)) == {True: 2 * B, False: 0}


def test_rows_are_partitioned_and_both_kinds_are_there_where_asked_for() -> None:
    kept_BL = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]]).bool()
    sampled_BL = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]]).bool()
    plain = rows_of_units(kept_BL, None, 1.0, both_ways=False, expected_share=0.5)
    assert [rows.run.tolist() for rows in plain] == [[0, 2], [0, 1], [0, 1, 2, 3]]
    assert [rows.kept for rows in plain] == [2, 0, 4]
    assert [rows.evaluated.tolist() for rows in plain] == [[1, 3], [2, 3], []]
    some = rows_of_units(kept_BL, sampled_BL, 0.5, both_ways=False, expected_share=0.5)
    assert [rows.run.tolist() for rows in some] == [[0, 2], [1, 3], [0, 1, 2, 3]]
    # One more than asked for, as a single one is another program.
    assert [rows.evaluated.tolist() for rows in some] == [[1, 3], [], []]
    assert [rows.weight_B.tolist() for rows in some] == [[1, 2, 1, 0], [0, 2, 0, 2], [1, 1, 1, 1]]
    both = rows_of_units(kept_BL, None, 1.0, both_ways=True, expected_share=0.5)
    assert [len(rows.evaluated) for rows in both] == [2, 2, 2]
    (alone,) = rows_of_units(torch.ones(1, 1).bool(), None, 1.0, both_ways=True, expected_share=0.5)
    assert alone.run.tolist() == alone.evaluated.tolist() == [0]


def test_less_is_kept_for_the_backward_pass(make) -> None:
    setting, kept = make("dit"), {}
    gates = UnitGates(Budget.of(setting.net.units(), 2), GumbelTopK())
    noise = StepNoise(1, "test").gumbel("gumbel", Rows(0, 0, B), 4)
    for dense in (True, False):
        model = GatedBackbone(setting.net, gates, dense=dense)
        with Activations([*model.parameters(), *setting.inputs]) as counted:
            out = model(setting.inputs, setting.conditioning, noise)
        assert out.requires_grad
        kept[dense] = counted.bytes
    assert kept[False] < 0.7 * kept[True]
