"""What each weight update trains."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import count_parameters, predict
from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.gating.deltas import Frozen, Full, Lora


def trained(net: nn.Module) -> list[str]:
    return [name for name, p in net.named_parameters() if p.requires_grad]


def test_lora_size_on_dit_xl_2_is_the_published_one() -> None:
    with torch.device("meta"):
        net = DiT()
        Lora().attach(net)
    assert count_parameters(net, trainable_only=True) == 6_001_920


def test_lora_adapts_every_linear_and_nothing_else(net: DiT) -> None:
    linears = {name for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    Lora(rank=2, alpha=4.0).attach(net)
    assert len(linears) == 5 * net.depth + 4
    assert {name.rpartition(".lora_")[0] for name in trained(net)} == linears
    assert all(".lora_" in name for name in trained(net))
    assert not any("x_embedder" in name or "embedding_table" in name for name in trained(net))


def test_lora_starts_at_the_source_and_scales_by_alpha_over_rank(
    net: DiT, inputs: tuple[tuple[Tensor, ...], ClassLabels]
) -> None:
    before = copy.deepcopy(net)
    Lora(rank=8, alpha=16.0).attach(net)
    with torch.no_grad():
        assert torch.equal(predict(net, *inputs), predict(before, *inputs))
        layer = net.get_submodule("blocks.0.attn.proj")
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        up.normal_()
        x = torch.randn(3, 16)
        update = layer(x) - before.get_submodule("blocks.0.attn.proj")(x)
    torch.testing.assert_close(update, 2.0 * x @ (up @ down).T, rtol=1e-4, atol=1e-4)


def test_full_trains_all_weights_but_the_fixed_table(net: DiT) -> None:
    Full().attach(net)
    everything = [name for name, _ in net.named_parameters()]
    assert sorted(trained(net)) == sorted(set(everything) - {"pos_embed"})


def test_frozen_trains_nothing(net: DiT) -> None:
    Frozen().attach(net)
    assert trained(net) == []


@pytest.mark.parametrize("arguments", [{"rank": 0}, {"dropout": 1.0}])
def test_lora_refuses_impossible_settings(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"delta\.{next(iter(arguments))}="):
        Lora(**arguments)
