"""What a phase says before it begins, and what it warns of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tinyfusion.errors import InputError
from tinyfusion.pipeline.batching import split_batch
from tinyfusion.pipeline.schedule import described, warned
from tinyfusion.training.ema import Ema
from tinyfusion.training.recipes import RECIPES, STUDENTS, differences
from tinyfusion.training.settings import PhaseSettings, TrainerSettings, TrainingSettings

PUBLISHED = {
    "mask_learning": TrainingSettings(10_009, 128, learning_rate=1e-4, label_drop=0.1),
    "recovery": TrainingSettings(
        100_000,
        256,
        learning_rate=2e-4,
        learning_rate_end=1e-4,
        label_drop=0.1,
        ema_warm_up=False,
    ),
}


def phase(decay: float = 0.9999, warm_up: bool = True, weight_decay: float = 0.0) -> Any:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=weight_decay)
    return SimpleNamespace(
        averages={"student": (Ema(net, decay, warm_up), net)},
        label_drop=0.1,
        configure_optimizers=lambda: {"optimizer": optimizer},
        notes=lambda: ["a note of the phase's own"],
    )


def warnings(settings: TrainingSettings, module: Any = None, name="recovery", micro_batch=None):
    trainer = TrainerSettings(micro_batch=micro_batch)
    split = split_batch("key", settings.batch_size, 1, micro_batch)
    return warned(module or phase(), settings, trainer, split, name, "tinyfusion")


def changed(name: str = "recovery", **values: Any) -> TrainingSettings:
    return TrainingSettings(**{**PUBLISHED[name].__dict__, **values})


def test_steps_images_epochs_and_shares_are_said() -> None:
    split = split_batch("key", 256, 4, 16)
    lines = described(phase(), PUBLISHED["recovery"], split, 1_281_167)
    assert lines[0] == (
        "100,000 steps x global batch 256 = 25,600,000 images (20.0 epochs of 1,281,167)"
    )
    assert lines[1] == "global batch 256 = 4 device(s) x 4 micro-batch(es) x 16 image(s)"
    assert "(decay 0.9999 x 100,000 steps, warmed up; without it 0.0045 %)" in lines[2]
    assert lines[3:] == ["a note of the phase's own"]


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize("updates", [0, 1, 30])
def test_start_share_is_what_an_average_holds_of_its_start(warm_up: bool, updates: int) -> None:
    net = nn.Linear(3, 3)
    ema = Ema(net, 0.9, warm_up)
    start = {name: value.clone() for name, value in ema.shadow.items()}
    for parameter in net.parameters():
        parameter.data.zero_()
    for _ in range(updates):
        ema.update(net)
    for name, value in ema.shadow.items():
        torch.testing.assert_close(value, ema.start_share(updates) * start[name])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_schedule_raises_no_warning(name: str) -> None:
    module = phase(0.999, warm_up=False) if name == "mask_learning" else phase()
    assert warnings(PUBLISHED[name], module, name) == []
    assert warnings(changed(steps=500_000)) == []
    assert warned(phase(), changed(steps=7), TrainerSettings(), split_batch("", 256, 1, None),
                  "recovery", None) == []  # fmt: skip


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"learning_rate": 1e-3}, "learning_rate=0.001 instead of 0.0002"),
        ({"learning_rate_end": None}, "learning_rate_end=0.0002 instead of 0.0001"),
        ({"warm_up": 10}, "warm_up=10 instead of 0"),
        ({"clip_norm": 2.0}, "clip_norm=2 instead of 1"),
        ({"ema_decay": 0.999}, "ema_decay=0.999 instead of 0.9999"),
        ({"ema_warm_up": True}, "ema_warm_up=true instead of false"),
    ],
)
def test_each_differing_value_is_named_with_the_published_one(values: dict, text: str) -> None:
    (line,) = warnings(changed(**values))
    assert line == f"differs from the recipe 'tinyfusion': {text}"


def test_the_optimisers_weight_decay_counts_too() -> None:
    (line,) = warnings(changed(), phase(weight_decay=0.01))
    assert "weight_decay=0.01 instead of 0" in line


def test_fewer_steps_at_a_larger_batch_are_explained() -> None:
    (line,) = warnings(changed(steps=25_000, batch_size=1024))
    assert "batch_size=1024 instead of 256" in line
    assert "steps=25,000 instead of 100,000 or 500,000" in line
    assert "the same images" in line and "4.0 times fewer updates" in line
    (line,) = warnings(changed(steps=10_000))
    assert "2,560,000 images" in line and "10.0 times fewer updates" in line
    # The long recovery at four times the batch is as long as no published one.
    (line,) = warnings(changed(steps=125_000, batch_size=1024))
    assert "fewer" not in line


def test_an_average_that_has_not_left_its_start() -> None:
    (line,) = warnings(changed(steps=100_000), phase(0.99999, warm_up=False))
    assert "still hold 37 % of its start" in line and "lower the decay" in line
    assert warnings(changed(), phase(0.99999, warm_up=True)) == []


def test_shares_that_fall_apart_into_tiny_micro_batches() -> None:
    (line,) = [text for text in warnings(changed(batch_size=254), None, "recovery", 64)
               if "micro-batches" in text]  # fmt: skip
    assert "only 2 image(s)" in line and "trainer.micro_batch=64" in line
    assert not warnings(changed(), micro_batch=50)


def test_recipes_cover_what_they_claim() -> None:
    assert differences("tinyfusion", "pretrain", 1, 1, {}) == []
    assert {RECIPES[name] for name in RECIPES} <= set(STUDENTS.values())
    with pytest.raises(InputError, match=r"training.recipe='mine'.*tinyfusion"):
        PhaseSettings(recipe="mine")
