"""Mask learning and recovery of a text-to-image network of two streams, by the real trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tinyfusion.callbacks.sample_grid import SampleGrid
from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.datamodule import Batch
from tinyfusion.gating.deltas import Full
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.pipeline.batching import Split
from tinyfusion.pipeline.estimate import fake, make_fake, phase_memory
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.generate import generate_images
from tinyfusion.scheme import parse_scheme
from tinyfusion.surgery import prune
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.pretrain import Pretraining
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import Linear
from tinyfusion.training.settings import TrainerSettings

KINDS = ("masks", "kd", "masked_kd", "pretrain")
OBJECTIVES = {
    "kd": lambda: Objective(0.1, 0.9),
    "masked_kd": lambda: Objective(0.1, 0.9, 0.01, 0.0, "separate"),
}


@pytest.fixture
def source(two_streams):
    return two_streams.Captioned()


@pytest.fixture
def make(two_streams, shared, source) -> Callable[..., DenoiserTraining]:
    """``make(kind, steps)``: a phase that trains such a network."""

    def build(kind: str, steps: int = 1, **changes: Any) -> DenoiserTraining:
        arguments, net = shared(steps, **changes), two_streams.make_net()
        if kind == "masks":
            Full().attach(net)
            gates = PatternGates(parse_scheme("1:2", 4))
            return MaskLearning(net, gates, 10.0, Linear(4, 1), Linear(9, 9), None, **arguments)
        if kind == "pretrain":
            held_out = HeldOutLoss(arguments["process"], *source.held_out())
            return Pretraining(net, 0.9, held_out, 1, **arguments)
        student, pairs = prune(net, [1, 3]), [(0, 1), (1, 3)]
        return Recovery(student, FrozenTeacher(net), OBJECTIVES[kind](), pairs, 0.9, **arguments)

    return build


def spy(net: torch.nn.Module) -> list[tuple[Tensor, ...]]:
    """What a network is given from now on."""
    seen: list[tuple[Tensor, ...]] = []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_trains_everything_that_is_to_be_trained(make, run, kind: str) -> None:
    module = make(kind)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    run(module)
    assert module.skipped_steps == 0
    for name, parameter in module.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[name]), name
    if kind == "masks":
        state = module.decision_state().averaged
        assert len(state.kept) == 2 and set(state.inclusion) != {0.5}


@pytest.mark.parametrize("kind", ["kd", "masked_kd"])
def test_teacher_and_student_are_told_the_same_and_the_null_at_the_same_places(
    make, run, two_streams, kind: str
) -> None:
    module = make(kind, 3, label_drop=0.5)
    by_student, by_teacher = spy(module.student), spy(module.teacher.net)
    run(module, batch_size=16)
    assert len(by_student) == len(by_teacher) == 3
    for ours, theirs in zip(by_student, by_teacher, strict=True):
        assert len(ours) == 4
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for step, (_, _, text, mask) in enumerate(by_student):
        null = module.student.null_text
        dropped_B = (text == null).flatten(1).all(1)
        assert (mask[dropped_B].sum(1) == 1).all() and (text[~dropped_B, 0] != null).any(1).all()
        # The same draws as drop the labels of a class-conditional network.
        batch = Batch(torch.zeros(16, 1, 4, 4), ClassLabels(torch.zeros(16).long()), step, 0)
        draws = module.noise.uniform("label_drop", batch.rows)
        assert torch.equal(dropped_B, draws < 0.5) and 0 < dropped_B.sum() < 16


def test_nothing_is_dropped_at_zero(make, run) -> None:
    module = make("pretrain", 2, label_drop=0.0)
    seen = spy(module.net)
    run(module)
    texts = torch.cat([text for _, _, text, _ in seen])
    assert not (texts == module.net.null_text).flatten(1).all(1).any()


def test_samples_are_shown_of_its_examples(make, run, two_streams) -> None:
    grid, module = SampleGrid(1, DDIMSampler(2), columns=3), make("pretrain")
    run(module, callbacks=[grid])
    assert {step: tuple(row.shape) for step, row in grid.rows.items()} == dict.fromkeys(
        (0, 1), (3, 1, 4, 4)
    )
    first = two_streams.make_net()
    texts = first.example_conditioning(3)
    assert torch.equal(grid.rows[0], generate_images(first, module.process, grid.sampler, texts, 0))


@pytest.mark.parametrize("kind", ["masks", "masked_kd"])
def test_recomputing_and_micro_batches_change_nothing(make, run, tmp_path, caplog, kind) -> None:
    caplog.set_level(logging.INFO)
    # Adam would blow up the rounding of gradients that are zero by symmetry.
    plain = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.01)}
    modules = [make(kind, 2, **plain) for _ in range(3)]
    run(modules[0], folder=tmp_path / "whole")
    run(modules[1], folder=tmp_path / "recomputed", checkpoint_blocks=True)
    run(modules[2], folder=tmp_path / "cut", accumulate=4)
    for module in modules[1:]:
        pairs = zip(module.named_parameters(), modules[0].parameters(), strict=True)
        for (name, found), wanted in pairs:
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5, msg=name)
    lines = [m for m in caplog.messages if "of activations per micro-batch of 8" in m]
    kept = [float(line.split()[1]) for line in lines]
    assert len(kept) == 2 and kept[1] < kept[0]


@pytest.mark.parametrize("kind", KINDS)
def test_its_memory_is_estimated_from_shapes(make, kind: str) -> None:
    module = make(kind)
    teacher = module.teacher.net if isinstance(module, Recovery) else None
    with fake():
        for each in (module, *([] if teacher is None else [teacher])):
            make_fake(each)
        memory = phase_memory(
            module, teacher, (1, 4, 4), Split(1, 1, 8), TrainerSettings("cpu"), 2.0
        )
    assert memory.parts["activations"] > 0 and memory.total > memory.parts["weights"]
