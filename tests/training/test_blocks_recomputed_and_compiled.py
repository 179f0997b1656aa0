"""Recomputed and compiled blocks train as plain ones do; activations are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tinyfusion.backbones.contract import recompute_blocks
from tinyfusion.callbacks.memory import MemoryReport
from tinyfusion.gating.deltas import Lora
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.metrics.memory import Activations
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.scheme import parse_scheme
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import Linear

STEPS = 3
Make = Callable[[], DenoiserTraining]


class Losses(Callback):
    """Loss of every micro-batch, and the gradients of the last step before they are clipped."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        named = module.named_parameters()
        self.gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}


@pytest.fixture
def masks(make_net, shared) -> Make:
    def build() -> MaskLearning:
        net = make_net(4)
        # Dropout draws are repeated when a block is computed again.
        Lora(rank=2, dropout=0.3).attach(net)
        gates = PatternGates(parse_scheme("1:2", 4, ()))
        torch.manual_seed(5)
        return MaskLearning(net, gates, 10.0, Linear(4, 1), Linear(9, 9), None, **shared(STEPS))

    return build


@pytest.fixture
def recovery(make_net, shared) -> Make:
    def build() -> Recovery:
        objective = Objective(0.1, 0.9, 1e-2, 0.0, "separate", variance_kl=True)
        teacher = FrozenTeacher(make_net(4))
        return Recovery(make_net(2), teacher, objective, [(0, 1), (1, 3)], 0.9, **shared(STEPS))

    return build


@pytest.fixture
def trained(run, tmp_path, request) -> Callable[..., tuple[DenoiserTraining, Losses]]:
    def train(kind: str, **trainer: Any) -> tuple[DenoiserTraining, Losses]:
        module, seen = request.getfixturevalue(kind)(), Losses()
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        run(module, callbacks=[seen], folder=folder, resume_every=1, **trainer)
        return module, seen

    return train


KINDS = pytest.mark.parametrize("kind", ["masks", "recovery"])


@KINDS
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_recomputing_changes_no_loss_and_no_gradient(trained, kind: str, precision: str) -> None:
    module, plain = trained(kind, precision=precision)
    again, recomputed = trained(kind, precision=precision, checkpoint_blocks=True)
    assert plain.losses == pytest.approx(recomputed.losses, rel=1e-5)
    assert plain.gradients.keys() == recomputed.gradients.keys()
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(recomputed.gradients[name], gradient, rtol=1e-4, atol=1e-7)
    assert module.state_dict().keys() == again.state_dict().keys()


@KINDS
def test_recomputing_keeps_less_and_leaves_the_teacher_alone(
    run, request, tmp_path, caplog, kind: str
) -> None:
    caplog.set_level(logging.INFO)
    kept = {}
    for recompute in (False, True):
        module = request.getfixturevalue(kind)()
        run(module, folder=tmp_path / str(recompute), checkpoint_blocks=recompute)
        blocks = module.trained_net.blocks
        assert {getattr(b, "_tinyfusion_recomputed", False) for b in blocks} == {recompute}
        if kind == "recovery":
            teacher = module.teacher.net.blocks
            assert not any(getattr(b, "_tinyfusion_recomputed", False) for b in teacher)
        (line,) = [m for m in caplog.messages if "of activations per micro-batch of 8" in m]
        kept[recompute] = float(line.split()[1])
        caplog.clear()
    assert kept[True] < 0.5 * kept[False]


# Of both kinds with the quickest backend; what takes gradients apart is slower to start.
@pytest.mark.parametrize(
    ("kind", "backend", "recompute"),
    [
        ("masks", "eager", False),
        ("recovery", "eager", True),
        pytest.param("recovery", "aot_eager", False, marks=pytest.mark.slow),
        pytest.param("recovery", "aot_eager", True, marks=pytest.mark.slow),
    ],
)
def test_compiled_blocks_train_alike_under_plain_names(
    trained, tmp_path, kind: str, backend: str, recompute: bool
) -> None:
    torch._dynamo.reset()
    module, plain = trained(kind)
    options = {"compile": True, "compile_backend": backend, "checkpoint_blocks": recompute}
    compiled, seen = trained(kind, **options)
    assert all(block._compiled_call_impl is not None for block in compiled.trained_net.blocks)
    if kind == "recovery":
        assert all(b._compiled_call_impl is not None for b in compiled.teacher.net.blocks)
    assert seen.losses == pytest.approx(plain.losses, rel=1e-5)
    assert compiled.state_dict().keys() == module.state_dict().keys()
    files = sorted(tmp_path.rglob("resume.ckpt"))
    names = [list(torch.load(file, weights_only=True)["state_dict"]) for file in files]
    assert len(files) == 2 and names[0] == names[1]
    assert not [name for name in names[0] if "_orig_mod" in name]


def test_counting_leaves_training_bit_for_bit_alone(trained, monkeypatch) -> None:
    _, counted = trained("recovery")
    report = MemoryReport.__init__
    monkeypatch.setattr(
        MemoryReport, "__init__", lambda self, phase, count: report(self, phase, False)
    )
    _, plain = trained("recovery")
    assert counted.losses == plain.losses
    assert all(torch.equal(counted.gradients[n], g) for n, g in plain.gradients.items())


def test_no_hook_stays_behind_when_a_step_fails(run, recovery, monkeypatch) -> None:
    module = recovery()
    monkeypatch.setattr(module, "step_losses", lambda prepared: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(module)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        pass
    weight = torch.ones(3, requires_grad=True)
    (weight * weight).sum().backward()
    assert torch.equal(weight.grad, torch.full((3,), 2.0))


def test_inputs_of_recomputed_blocks_are_all_that_they_keep(make_net) -> None:
    net = make_net(4).requires_grad_(False)
    for block in net.blocks:
        block.requires_grad_(True)
    x, t, y = torch.randn(2, 1, 4, 4), torch.zeros(2), torch.zeros(2, dtype=torch.long)
    kept = {}
    for recompute in (False, True):
        recompute_blocks(net, recompute)
        with Activations([*net.parameters(), x, t, y]) as counted:
            loss = net(x, t, y).sum()
        assert loss.requires_grad
        kept[recompute] = counted.bytes
    # Every block's input (its predecessor's output), shape (2, 4, 16), the shared condition
    # (2, 16), and what the last layer keeps: norm statistics, its input and its modulation.
    states, condition = 2 * 4 * 16 * 4, 2 * 16 * 4
    assert 4 * states + condition <= kept[True] <= 8 * states + 6 * condition < kept[False]
