"""What autograd keeps is counted by storage, exactly, without a trace in values or gradients."""

from __future__ import annotations

import torch
from torch import nn

from tinyfusion.metrics.memory import Activations, LiveBytes, bytes_of, peak_gpu_memory


def test_each_storage_counts_once() -> None:
    a, b = torch.randn(10, requires_grad=True), torch.randn(10, requires_grad=True)
    with Activations([a, b]) as counted:
        c = a * b  # keeps a and b, which are owned
        assert counted.bytes == 0
        d = c * c.view(2, 5).reshape(10)  # keeps c, twice, under two views
        assert counted.bytes == 40
        e = d.exp()  # keeps its own result
    assert counted.bytes == 80
    del e
    assert counted.bytes == 40, "what nobody needs any more is gone"


def test_parameters_and_their_views_do_not_count() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    with Activations([*layer.parameters(), x]) as counted:
        out = layer(x)
    assert out.requires_grad and counted.bytes == 0
    # Half-precision copies of weights are memory as well.
    with Activations([*layer.parameters(), x]) as counted, torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert counted.bytes == 3 * 8 * 2


def test_nothing_is_kept_without_gradients() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    with Activations(net.parameters()) as counted, torch.no_grad():
        out = net(torch.randn(2, 8))
    assert not out.requires_grad and counted.bytes == 0


def test_values_and_gradients_are_the_same() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 1))
    x = torch.randn(4, 8)
    net(x).sum().backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with Activations(net.parameters()) as counted:
        out = net(x)
    assert counted.bytes > 0
    out.sum().backward()
    assert counted.bytes == 0
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), wanted, strict=True))


def test_the_count_ends_with_the_context() -> None:
    a = torch.randn(10, requires_grad=True)
    with Activations() as counted:
        first = a.exp()
    second = a.exp()
    assert counted.bytes == 40 and first.equal(second)


def test_meta_tensors_are_counted_alike() -> None:
    sizes = []
    for device in ("cpu", "meta"):
        net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2)).to(device)
        with Activations(net.parameters()) as counted:
            out = net(torch.ones(5, 8, device=device))
        assert out.requires_grad
        sizes.append(counted.bytes)
    assert sizes[0] == sizes[1] == (5 * 8 + 2 * 5 * 16) * 4


def test_a_cpu_has_no_gpu_memory() -> None:
    assert peak_gpu_memory(torch.device("cpu")) is None


def test_live_bytes_count_storages_while_they_are_there() -> None:
    given = torch.randn(10)
    with LiveBytes([given]) as counted:
        a = given + 1
        view = a.view(2, 5).t()
        del a
        assert counted.now == 40, "a view keeps its storage"
        del view
        assert counted.now == 0
        held = [torch.zeros(10) for _ in range(3)]
        held.pop()
        given.mul_(2).view(2, 5)  # owned, however it is seen
        assert (counted.now, counted.peak) == (80, 120)
    del held
    assert (counted.now, counted.peak) == (0, 120)
    torch.zeros(100)
    assert counted.peak == 120, "the count ended with the context"


def test_bytes_of_a_network_are_those_of_parameters_and_buffers() -> None:
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    # Weight, bias; scale, shift, mean and variance; the number of batches as int64.
    assert bytes_of(net) == 4 * (32 + 4 + 4 * 4) + 8
    assert bytes_of(net.to(torch.bfloat16)) == 2 * (32 + 4 + 4 * 4) + 8
