"""What a MAR asks of training: batches of changing length, cut into rows, resumed, compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch._dynamo.utils import counters

from tinyfusion.backbones.mar import MAR
from tinyfusion.gating.deltas import Lora
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.scheme import parse_scheme
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import Linear

STEPS = 4
Build = Callable[[], DenoiserTraining]


def new_net(encoder_depth: int, decoder_depth: int) -> MAR:
    torch.manual_seed(8)
    stacks = {"encoder_depth": encoder_depth, "decoder_depth": decoder_depth}
    head = {"head_depth": 1, "head_width": 16}
    net = MAR(4, 16, num_heads=2, in_channels=1, num_classes=2, buffer_size=2, **stacks, **head)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return net


class Watch(Callback):
    """Notes how many tokens each micro-batch hides, and its loss."""

    def __init__(self) -> None:
        self.hidden: dict[int, set[int]] = {}
        self.losses: list[float] = []

    def on_train_start(self, trainer: Any, module: DenoiserTraining) -> None:
        corrupt = module.process.corrupt

        def noted(clean: Any, draws: Any) -> Any:
            batch = corrupt(clean, draws)
            self.hidden.setdefault(draws.rows.step, set()).add(batch.hidden.shape[1])
            return batch

        module.process.corrupt = noted

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"].detach()))


@pytest.fixture
def make(shared) -> Callable[[str], DenoiserTraining]:
    def build(kind: str) -> DenoiserTraining:
        # Adam would blow up the rounding of gradients that are zero by symmetry.
        plain = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.5)}
        process = MaskedDiffusion(mask_ratio_min=0.2, mask_ratio_std=1.0)
        arguments = shared(STEPS, rate=0.05, process=process, **plain)
        if kind == "recovery":
            objective = Objective(0.1, 0.9, 0.01, 0.0, "intersection", variance_kl=True)
            # A stack without blocks is trained along, too.
            student, teacher = new_net(0, 2), FrozenTeacher(new_net(2, 2))
            return Recovery(student, teacher, objective, [(0, 2), (1, 3)], 0.9, **arguments)
        net = new_net(2, 2)
        Lora(2, 4.0).attach(net)
        gates = PatternGates(parse_scheme("1:2", 4, net.borders))
        return MaskLearning(net, gates, 10.0, Linear(4, 1), Linear(9, 9), 0.5, **arguments)

    return build


@pytest.fixture
def trained(make, run, tmp_path: Path) -> Callable[..., tuple[dict[str, torch.Tensor], Watch]]:
    def train(kind: str, folder: str, **options: Any) -> tuple[dict[str, torch.Tensor], Watch]:
        module, watch = make(kind), Watch()
        more = options.pop("more", [])
        run(module, 8, folder=tmp_path / folder, callbacks=[watch, *more], **options)
        state = {name: p.detach().clone() for name, p in module.named_parameters()}
        for name, (ema, _) in module.averages.items():
            state |= {f"{name} average of {key}": v.clone() for key, v in ema.shadow.items()}
        return state, watch

    return train


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)


KINDS = pytest.mark.parametrize("kind", ["masks", "recovery"])


@KINDS
def test_micro_batches_of_a_step_hide_equally_many_tokens(trained, kind: str) -> None:
    whole, seen = trained(kind, "one")
    parts, seen_in_parts = trained(kind, "four", accumulate=4)
    assert_same(parts, whole)
    assert seen.hidden == seen_in_parts.hidden
    assert all(len(counts) == 1 for counts in seen.hidden.values())
    assert len(set(map(frozenset, seen.hidden.values()))) > 1


class Killed(Exception):
    pass


class KillAt(Callback):
    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            raise Killed


@KINDS
def test_resumed_run_equals_an_uninterrupted_one(trained, kind: str) -> None:
    whole, seen = trained(kind, "one")
    with pytest.raises(Killed):
        trained(kind, "cut", resume_every=2, more=[KillAt()])
    resumed, seen_again = trained(kind, "cut", resume_every=2)
    assert_same(resumed, whole)
    assert seen_again.hidden == {step: seen.hidden[step] for step in (2, 3)}


@KINDS
def test_recomputing_and_autocast(trained, kind: str) -> None:
    plain, seen = trained(kind, "plain")
    recomputed, _ = trained(kind, "recomputed", checkpoint_blocks=True)
    assert_same(recomputed, plain)
    state, rounded = trained(kind, "rounded", precision="bf16-mixed", checkpoint_blocks=True)
    assert rounded.losses == pytest.approx(seen.losses, rel=0.05)
    assert all(value.dtype == torch.float32 for value in state.values())


def test_lengths_that_change_are_compiled_once(trained) -> None:
    torch._dynamo.reset()
    _, plain = trained("recovery", "plain")
    counters.clear()
    _, compiled = trained("recovery", "compiled", compile=True, compile_backend="eager")
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    # Student and teacher, with and without gradients, each for one length and then for any.
    assert 1 <= counters["stats"]["unique_graphs"] <= 4


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@KINDS
def test_two_ranks_are_one(trained, on_two_ranks, strategy: str, kind: str) -> None:
    one, seen = trained(kind, "one")

    def work() -> dict[str, Any]:
        state, watch = trained(kind, "two", strategy=strategy, devices=2)
        return {"state": state, "hidden": {k: sorted(v) for k, v in watch.hidden.items()}}

    for rank in on_two_ranks(work):
        assert_same(rank["state"], one)
        assert rank["hidden"] == {k: sorted(v) for k, v in seen.hidden.items()}
