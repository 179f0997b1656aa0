"""Sparse gating trains as the dense form does, however the steps are run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft.tuners.lora import layer as peft_layers
from torch import Tensor, nn

from tests.training.conftest import state
from tinyfusion.errors import InputError
from tinyfusion.gating.deltas import Frozen, Full, Lora
from tinyfusion.gating.low_rank import LowRankLinear
from tinyfusion.pruners.learned import Learned
from tinyfusion.training.schedules import Linear

STEPS = 3


@pytest.mark.parametrize("delta", [Lora(2, 4.0), Full(), Frozen()], ids=["lora", "full", "frozen"])
@pytest.mark.parametrize(
    ("options", "close"),
    [
        ({"accumulate": 4}, 1e-5),
        ({"precision": "bf16-mixed"}, 5e-3),
        ({"checkpoint_blocks": True}, 1e-5),
    ],
    ids=["micro-batches", "bfloat16", "recomputed"],
)
def test_trained_weights_are_those_of_the_dense_form(
    make_learning, run, tmp_path, delta: Any, options: dict[str, Any], close: float
) -> None:
    modules = [make_learning(delta, dense) for dense in (True, False)]
    for number, module in enumerate(modules):
        run(module, folder=tmp_path / str(number), **options)
    dense, sparse = map(state, modules)
    for name, value in dense.items():
        torch.testing.assert_close(sparse[name], value, rtol=0, atol=close, msg=name)


class NoiseOfRanks:
    """Gumbel noise by which all samples of the first half keep the first two of four blocks."""

    def __call__(self, purpose: str, rows: Any, *shape: int) -> Tensor:
        first = torch.tensor([20.0, 20.0, 0.0, 0.0])
        numbers = rows.first + torch.arange(rows.count)
        return torch.stack([first if number < 4 else first.flip(0) for number in numbers])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("delta", [Lora(2, 4.0), Full()], ids=["lora", "full"])
def test_ranks_may_keep_none_of_the_blocks_that_others_keep(
    make_learning, run, on_two_ranks, tmp_path, delta: Any, strategy: str
) -> None:
    def work(dense: bool, folder: str, **trainer: Any) -> dict[str, Tensor]:
        module = make_learning(delta, dense)
        object.__setattr__(module.noise, "gumbel", NoiseOfRanks())
        run(module, 8, folder=tmp_path / folder, **trainer)
        return state(module)

    wanted = work(True, "dense")
    for rank in on_two_ranks(lambda: work(False, "sparse", devices=2, strategy=strategy)):
        for name, value in wanted.items():
            torch.testing.assert_close(rank[name], value, rtol=0, atol=1e-5, msg=name)


@contextmanager
def counting_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts the programs that are compiled, which run as they are."""
    programs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        programs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compile_blocks = "tinyfusion.pipeline.fit.compile_blocks"

    def compile_all(net: Any, _: str) -> None:
        for block in net.blocks:
            block.compile(backend=backend)

    monkeypatch.setattr(compile_blocks, compile_all)
    yield programs
    torch._dynamo.reset()


@pytest.mark.parametrize("delta", [Lora(2, 4.0), Full()], ids=["lora", "full"])
def test_compiled_blocks_are_few_programs_for_all_numbers_of_rows(
    make_learning, run, monkeypatch, tmp_path, delta: Any
) -> None:
    plain = make_learning(delta, steps=8)
    run(plain, 16, folder=tmp_path / "plain")
    with counting_programs(monkeypatch) as programs:
        compiled = make_learning(delta, steps=8)
        run(compiled, 16, folder=tmp_path / "compiled", compile=True)
    # With and without gradients, of one size and of any, and of a single sample.
    assert 2 <= len(programs) <= 6
    for (name, value), found in zip(state(plain).items(), state(compiled).values(), strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5, msg=name)


def test_low_rank_layers_compute_what_pefts_do() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 3, bias=False)).double()
    Lora(2, 4.0).attach(ours.requires_grad_(True))
    ours.double()
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    theirs = copy.deepcopy(ours)
    layers = [layer for layer in ours.modules() if isinstance(layer, LowRankLinear)]
    assert len(layers) == 2
    for layer in theirs.modules():
        if isinstance(layer, LowRankLinear):
            layer.__class__ = peft_layers.Linear
    x = torch.randn(5, 4, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for net in (ours, theirs):
        x.grad = None
        out = net(x)
        out.sin().sum().backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        found.append({"out": out.detach(), "x": x.grad} | gradients)
    assert len(found[0]) == 6
    for key, value in found[1].items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-12, atol=1e-12, msg=key)
    layer, before = layers[0], ours(x)
    layer.enable_adapters(False)
    assert not torch.equal(ours(x), before)
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    assert not any(isinstance(m, LowRankLinear) for m in with_dropout().modules())


def test_low_rank_layers_round_no_more_than_pefts_under_autocast() -> None:
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Linear(32, 48))
    Lora(4, 8.0).attach(exact)
    nn.init.normal_(exact[0].lora_B["default"].weight, std=0.2)
    x, wanted = torch.randn(64, 32), torch.randn(64, 48)
    found = []
    for kind, autocast in (
        (LowRankLinear, False),
        (LowRankLinear, True),
        (peft_layers.Linear, True),
    ):
        net = copy.deepcopy(exact)
        net[0].__class__ = kind
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = net(x)
        assert out.dtype == (torch.bfloat16 if autocast else torch.float32)
        ((out.float() - wanted) ** 2).mean().backward()
        found.append([out.float().detach(), *(p.grad for p in net.parameters() if p.requires_grad)])
    for right, ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype and not torch.equal(ours, right)
        assert (ours - right).norm() <= 1.1 * (theirs - right).norm()


def with_dropout() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 9))
    Lora(2, 4.0, dropout=0.5).attach(net)
    return net


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"settle": 0.5}, r"pruner.settle=0.5 must be more than 0 and less than 0.5"),
        ({"settle": 0.0}, r"pruner.settle=0.0 must be"),
        ({"gate_gradients": 0.0}, r"pruner.gate_gradients=0.0 must be more than 0 and at most 1"),
        ({"gate_gradients": 0.5, "dense": True}, r"pruner.gate_gradients=0.5 leaves out"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Learned(Frozen(), Linear(4.0, 0.1), Linear(100.0, 100.0), **wrong)


def test_sampled_gate_gradients_learn_from_draws_of_their_own(make_learning, run, tmp_path) -> None:
    modules = {share: make_learning(Frozen(), gate_gradients=share) for share in (1.0, 0.5)}
    again = make_learning(Frozen(), gate_gradients=0.5)
    for number, module in enumerate([*modules.values(), again]):
        run(module, folder=tmp_path / str(number))
    values = [state(m)["gated.gates.logits_L"] for m in (*modules.values(), again)]
    assert not torch.equal(values[0], values[1]) and torch.equal(values[1], values[2])
    cut = make_learning(Frozen(), gate_gradients=0.5)
    run(cut, accumulate=4, folder=tmp_path / "cut")
    torch.testing.assert_close(state(cut)["gated.gates.logits_L"], values[1], rtol=0, atol=1e-5)
