"""The method in a few calls, on plain objects: no configuration, no folder, any trainer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from torch import Tensor

import tinyfusion as tf
from tinyfusion.backbones.dit import DiT
from tinyfusion.data.digits import Digits
from tinyfusion.data.stream import BatchStream
from tinyfusion.errors import InputError
from tinyfusion.pipeline.budgets import Wanted
from tinyfusion.pruners.selectors import TopK
from tinyfusion.pruners.sensitivity import Sensitivity
from tinyfusion.recovery.objective import Objective
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.settings.overview import conf_folder
from tinyfusion.training.settings import TrainingSettings

STEPS = {"steps": 6, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def net() -> DiT:
    torch.manual_seed(3)
    net = DiT(8, 2, 1, hidden_size=16, depth=4, num_heads=2, num_classes=10)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    images, told = Digits().held_out()
    labels = getattr(told, "labels", told)
    return [(images[i : i + 8], labels[i : i + 8]) for i in range(0, 32, 8)]


def own_trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,  # the call says how long, not the trainer
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def same(first: DiT, second: DiT) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_learn_cut_recover_sample_score(net, batches, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    decision = tf.learn_mask(net, batches, scheme="1:2", **STEPS)
    assert len(decision.kept) == 2 and decision.method == "learned"
    assert len(decision.probabilities) == 2
    shallow = tf.prune(net, decision)
    student = tf.recover(shallow, batches, teacher=net, **STEPS)
    assert student.depth == 2 and not student.training and not same(student, shallow)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    images = tf.sample(student, torch.arange(4), seed=1)
    assert images.shape == (4, 1, 8, 8) and images.dtype == torch.uint8
    assert torch.equal(images, tf.sample(student, 4, seed=1))
    found = tf.score(student, Digits(), teacher=net, num_samples=12, extractor="tinyfusion-digits")
    assert {"fid", "held_out_loss", "teacher_distance", "parameters"} <= found.keys()
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_ones_own_trainer_gives_the_same_numbers_and_serves_again(net, batches) -> None:
    trainer = own_trainer()
    mine = tf.learn_mask(net, batches, keep=2, trainer=trainer, **STEPS)
    default = tf.learn_mask(net, batches, keep=2, **STEPS)
    assert mine.probabilities == default.probabilities and mine.kept == default.kept
    shallow = tf.prune(net, default)
    first = tf.recover(shallow, batches, teacher=net, trainer=trainer, **STEPS)
    assert same(first, tf.recover(shallow, batches, teacher=net, **STEPS))
    assert trainer.max_steps == 2 and trainer.global_step == 0


def test_micro_batches_of_ones_own_trainer_make_one_step(net, batches) -> None:
    shallow = tf.prune(net, [0, 2])
    whole = tf.recover(shallow, batches, trainer=own_trainer(), **STEPS)
    parts = tf.recover(shallow, batches, trainer=own_trainer(accumulate_grad_batches=2), **STEPS)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(tf.InputError, match=r"batch_size=8 .* accumulate_grad_batches=3.* of 3"):
        tf.recover(shallow, batches, trainer=own_trainer(accumulate_grad_batches=3), **STEPS)


def test_without_a_teacher_the_task_is_learned_and_ends_lower(net, batches) -> None:
    shallow = tf.prune(net, [0, 3])
    student = tf.recover(shallow, batches, steps=40, learning_rate=3e-3, ema_decay=0.5)
    images, labels = batches[0]
    held_out = tf.HeldOutLoss(tf.GaussianDiffusion(), images, labels)
    assert held_out(student)["loss"] < held_out(shallow)["loss"]


def test_recovered_weights_are_the_averaged_ones(net, batches) -> None:
    student = tf.prune(net, [0, 2])
    last, averaged = (
        tf.recover(student, batches, ema_decay=decay, **STEPS).state_dict() for decay in (0.0, 0.9)
    )
    assert any(not torch.equal(last[name], averaged[name]) for name in last)


def test_a_keyboard_interrupt_is_one_in_a_script_and_resumes(net, batches, tmp_path) -> None:
    class Interrupt(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    shallow, before = tf.prune(net, [0, 2]), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tf.recover(shallow, batches, folder=tmp_path, callbacks=[Interrupt()], **STEPS)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "resume.ckpt", weights_only=True)["global_step"] == 2
    resumed = tf.recover(shallow, batches, folder=tmp_path, **STEPS)
    whole = tf.recover(shallow, batches, **STEPS)
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_recipe_gives_every_number_that_is_not_given(net, batches, monkeypatch) -> None:
    from tinyfusion.pipeline import api

    seen = []
    monkeypatch.setattr(
        api,
        "_chosen",
        lambda pruner, net, runner, scheme, *_: seen.append((pruner, runner, scheme)),
    )
    recipe = tf.recipes.tinydit_d14
    tf.learn_mask(net, batches, recipe=recipe, steps=7)
    ((pruner, runner, scheme),) = seen
    settings = runner.settings("mask_learning")
    assert (settings.steps, settings.batch_size) == (7, 8)  # as said, and as the batches are
    assert settings.learning_rate == recipe.mask_learning.learning_rate == 1e-4
    assert (pruner.temperature.start, pruner.temperature.end) == (4.0, 0.1)
    assert (pruner.gate_ema_decay, pruner.delta.rank, scheme) == (0.999, 8, Wanted("1:2"))


def test_a_recipe_says_how_to_sample_and_score(net, batches, monkeypatch) -> None:
    from tinyfusion.pipeline import api

    seen = []
    monkeypatch.setattr(api, "generate_images", lambda *args, **_: seen.append(args))
    monkeypatch.setattr(api.Evaluation, "score", lambda self, *_: seen.append(self))
    recipe = tf.recipes.tinydit_d14
    tf.sample(net, 2, recipe=recipe)
    _, _, sampler, _, _, guidance = seen.pop()
    assert sampler.steps == recipe.sampler.steps == 250
    assert (guidance.scale, guidance.channels) == (1.5, 3)
    tf.sample(net, 2, recipe=recipe, guidance=1.0, sampler=AncestralSampler(5))
    _, _, sampler, _, _, guidance = seen.pop()
    assert (sampler.steps, guidance.scale) == (5, 1.0)
    tf.score(net, batches, recipe=recipe)
    (evaluation,) = seen
    assert (evaluation.num_samples, evaluation.sampler.steps) == (50_000, 250)
    assert evaluation.guidance.scale == 1.5
    with pytest.raises(InputError, match="does not suit a process of the kind 'diffusion'"):
        tf.sample(net, 2, recipe=tf.recipes.tinymar_d16)


def test_without_a_recipe_lengths_are_those_of_the_miniatures(net, batches, monkeypatch) -> None:
    from tinyfusion.pipeline import api

    seen = []
    monkeypatch.setattr(api, "_chosen", lambda pruner, net, runner, *_: seen.append(runner))
    tf.learn_mask(net, batches)
    configured = OmegaConf.load(conf_folder() / "training" / "digits.yaml")
    for phase in ("mask_learning", "recovery"):
        values = {key: value for key, value in configured[phase].items() if key != "_target_"}
        assert api._DEFAULTS[phase] == TrainingSettings(**values), phase
    assert seen[0].settings("mask_learning").steps == configured.mask_learning.steps


def test_any_pruner_chooses(net, batches) -> None:
    pruner = Sensitivity(TopK(), num_samples=16)
    decision = tf.choose(net, batches, pruner, keep=3)
    assert decision.method == "sensitivity" and len(decision.kept) == 3
    assert decision == tf.choose(net, BatchStream(batches), pruner, keep=3)


def test_phases_can_be_kept_and_resumed(net, batches, tmp_path: Path) -> None:
    whole = tf.recover(tf.prune(net, [0, 2]), batches, folder=tmp_path / "whole", **STEPS)
    from tinyfusion.training.settings import TrainerSettings

    class Killed(RuntimeError):
        pass

    def killing() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate([*batches, *batches]):
            if number == 5:
                raise Killed
            yield batch

    stream = BatchStream(batches)
    stream.batches = killing()
    options = {"folder": tmp_path / "parts", "trainer": TrainerSettings("cpu", resume_every=2)}
    with pytest.raises(Killed):
        tf.recover(tf.prune(net, [0, 2]), stream, **options, **STEPS)
    again = tf.recover(tf.prune(net, [0, 2]), batches, **options, **STEPS)
    assert same(again, whole)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data holds no batch"),
        ([torch.zeros(2, 1, 8, 8)], "a batch is a Tensor; valid: .images of shape"),
        ([(torch.zeros(2, 64), torch.zeros(2))], r"the images of a batch are \(2, 64\)"),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(3))], "2 images come with"),
    ],
)
def test_data_that_is_none_is_refused(net, data: Any, message: str) -> None:
    with pytest.raises(tf.InputError, match=message):
        tf.recover(net, data, **STEPS)


def test_other_mistakes_are_refused(net, batches) -> None:
    with pytest.raises(tf.InputError, match=r"unknown argument 'stpes'; valid settings: steps"):
        tf.recover(net, batches, stpes=3)
    with pytest.raises(tf.InputError, match=r"budget\.macs=0\.5 and keep=2 are two budgets"):
        tf.learn_mask(net, batches, keep=2, budget={"macs": 0.5}, **STEPS)
    with pytest.raises(tf.InputError, match="distils from a teacher"):
        tf.recover(net, batches, objective=Objective(0.1, 0.9), **STEPS)
    ending = iter(batches)
    with pytest.raises(tf.InputError, match="data ended and can't be begun again"):
        tf.recover(tf.prune(net, [0, 2]), ending, **STEPS)
