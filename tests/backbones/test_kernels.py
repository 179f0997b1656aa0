"""The CPU's fast forms of layers equal torch's own, with their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tinyfusion.backbones import kernels
from tinyfusion.backbones.kernels import Linear, gelu, linear

SHAPES = [(3, 5), (2, 7, 5), (1, 5), (40, 5)]


def gradients(out: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(2)
    return torch.autograd.grad(out, of, torch.randn_like(out))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [2, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs(shape: tuple[int, ...], width: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(5, width, bias)
    x = torch.randn(shape, requires_grad=True)
    of = (x, *layer.parameters())
    plain = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), plain)
    ours, theirs = gradients(layer(x), *of), gradients(plain, *of)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
        assert mine.is_contiguous()


@pytest.mark.parametrize("needed", ["x", "weight", "bias"])
def test_only_what_is_trained_has_a_gradient_and_is_kept_for_it(needed: str) -> None:
    tensors = {"x": torch.randn(6, 5), "weight": torch.randn(4, 5), "bias": torch.randn(4)}
    tensors[needed].requires_grad_()
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = linear(*tensors.values())
    if kernels.ONEDNN:
        assert kept == {"x": [(4, 5)], "weight": [(6, 5)], "bias": []}[needed]
    wanted = gradients(F.linear(*tensors.values()), tensors[needed])
    torch.testing.assert_close(gradients(out, tensors[needed]), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_autocast_are_torchs_to_the_bit(dtype: torch.dtype) -> None:
    layer, x = Linear(5, 4).to(dtype), torch.randn(3, 5, dtype=dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert torch.equal(gelu(x, "tanh"), F.gelu(x, approximate="tanh"))
    single, y = Linear(5, 4), torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = single(y)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, F.linear(y, single.weight, single.bias))
    assert Linear(5, 4, device="meta")(y.to("meta")).shape == (3, 4)
    assert single(y[:0]).shape == (0, 4)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_is_torchs(approximate: str) -> None:
    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    ours, wanted = gelu(x, approximate), F.gelu(exact, approximate=approximate)
    torch.testing.assert_close(ours, wanted.float(), rtol=1e-6, atol=1e-6)
    (mine,) = torch.autograd.grad(ours.sum(), x)
    (other,) = torch.autograd.grad(wanted.sum(), exact)
    torch.testing.assert_close(mine, other.float(), rtol=1e-5, atol=1e-5)


def test_products_are_counted() -> None:
    x = torch.randn(6, 5, requires_grad=True)
    counts = []
    for layer in (Linear(5, 4), nn.Linear(5, 4)):
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 6 * 5 * 4
