"""The memory of a phase, estimated from shapes, is what a real step of it holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback
from torch import Tensor

from tinyfusion.callbacks.memory import MemoryReport
from tinyfusion.commands.dry_command import DryCommand, dry_command
from tinyfusion.pipeline import fit as fit_module
from tinyfusion.pipeline.batching import Split
from tinyfusion.pipeline.estimate import (
    PhaseMemory,
    fake,
    make_fake,
    optimizer_state_factor,
    phase_memory,
    teacher_of,
)
from tinyfusion.settings.check import check
from tinyfusion.settings.objects import objects_of
from tinyfusion.settings.overview import conf_folder

TINY = (
    "backbone=dit_digits",
    "backbone.depth=4",
    "backbone.hidden_size=16",
    "backbone.num_heads=2",
    "training.mask_learning.batch_size=12",
    "training.recovery.batch_size=12",
    "training.pretrain.batch_size=12",
    "trainer.threads=1",
    "logger=csv",
    "callbacks=none",
)


@pytest.fixture
def dry() -> Iterator[Callable[..., DryCommand]]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield lambda command, *overrides: dry_command(
            objects_of(check(compose(command, [*TINY, "data=digits", *overrides])))
        )


def split_of(dry: DryCommand, phase: str) -> Split:
    return dry.runner.split(phase, dry.runner.settings(phase))


def estimates(dry: DryCommand) -> dict[str, PhaseMemory]:
    optimizer = dry.objects.optimizer
    factor, found = optimizer_state_factor(lambda groups: optimizer(groups, lr=1e-3)), {}
    for phase in dry.phases(dry.on_meta):
        module = phase.module()
        module.process = copy.deepcopy(dry.objects.process)
        teacher = teacher_of(module)
        with fake():
            make_fake(module)
            if teacher is not None:
                make_fake(teacher)
            split = split_of(dry, phase.name)
            found[phase.name] = phase_memory(
                module, teacher, (1, 8, 8), split, dry.objects.trainer, factor
            )
    return found


def size(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


class Held(Callback):
    """Bytes of gradients, and of the optimiser's state after a step."""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients = size(p.grad for p in module.parameters())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        states = trainer.optimizers[0].state.values()
        self.state = size(v for s in states for v in s.values() if v.numel() > 1)


@pytest.mark.parametrize(
    "trainer",
    [
        (),
        ("trainer.precision=bf16-mixed",),
        ("trainer.checkpoint_blocks=true", "trainer.micro_batch=4"),
        ("trainer.checkpoint_blocks=true", "trainer.precision=bf16-mixed"),
    ],
)
@pytest.mark.parametrize("command", ["run", "pretrain"])
def test_estimates_are_what_a_step_holds(
    dry, command: str, trainer: tuple[str, ...], tmp_path: Path, monkeypatch
) -> None:
    reports: list[MemoryReport] = []
    start = MemoryReport.__init__

    def noted(self: MemoryReport, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        reports.append(self)

    monkeypatch.setattr(MemoryReport, "__init__", noted)
    planned = dry(command, *trainer)
    estimated = estimates(planned)
    assert set(estimated) == (
        {"pretrain"} if command == "pretrain" else {"mask_learning", "recovery"}
    )
    trainer_settings = planned.objects.trainer
    for phase in planned.phases(planned.on_device):
        module, held = phase.module(), Held()
        settings = fit_module.TrainingSettings(1, 12)
        module.held_out_every, module.total_steps = 1000, 2
        folder = tmp_path / phase.name
        source = planned.objects.source
        fit_module.fit(
            module, source, settings, trainer_settings, folder, phase.name, 0, [], [held]
        )
        averages = size(t for ema, _ in module.averages.values() for t in ema.shadow.values())
        counted = {
            "weights": size(module.parameters()),
            "gradients": held.gradients,
            "optimiser state": held.state,
            "averages": averages,
            "activations": reports[-1].activations,
        }
        teacher = teacher_of(module)
        if teacher is not None:
            counted["teacher"] = size(teacher.parameters())
        memory = estimated[phase.name]
        recomputed = memory.parts.pop("one block recomputed", None)
        if phase.name == "mask_learning":  # depends on which samples keep which block
            activations = memory.parts.pop("activations")
            assert activations == pytest.approx(counted.pop("activations"), rel=0.06)
        assert memory.parts == counted
        assert (recomputed is not None) == trainer_settings.checkpoint_blocks
        assert memory.trained == sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert memory.resume == held.gradients + held.state + averages


def test_sharding_divides_all_but_the_teacher_and_the_activations(dry) -> None:
    whole = estimates(dry("run"))["recovery"].parts
    # Two devices with the micro-batch of one.
    double = ("trainer.devices=2", "training.recovery.batch_size=24")
    shared = estimates(dry("run", *double, "trainer.strategy=fsdp"))["recovery"].parts
    copied = estimates(dry("run", *double, "trainer.strategy=ddp"))["recovery"].parts
    for name in ("weights", "gradients", "optimiser state", "averages"):
        assert shared[name] == whole[name] // 2 and copied[name] == whole[name]
    for name in ("teacher", "activations"):
        assert shared[name] == copied[name] == whole[name]
    assert copied["gradient buckets"] == whole["gradients"]
    assert 0 < shared["gathered weights"] < 2 * whole["weights"]


def test_state_of_optimisers() -> None:
    assert optimizer_state_factor(lambda groups: torch.optim.AdamW(groups)) == 2.0
    assert optimizer_state_factor(lambda groups: torch.optim.SGD(groups, lr=1.0)) == 0.0
    assert optimizer_state_factor(lambda groups: torch.optim.SGD(groups, 1.0, 0.9)) == 1.0
