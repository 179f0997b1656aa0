"""The packaged teachers: what they are, what their provenance says, what they draw."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.backbones.presets import preset, preset_family
from tinyfusion.checkpoints import load
from tinyfusion.checkpoints.locate import ASSETS, PACKAGED
from tinyfusion.data.digits import digit_split
from tinyfusion.files import read_json
from tinyfusion.metrics.classifier import accuracy, load_digits_classifier
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.samplers.generate import generate
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.settings.packaged import TEACHERS, process_and_sampler

pytestmark = pytest.mark.parametrize("backbone", TEACHERS)


def test_has_the_preset_size_and_is_small(backbone):
    net = load(TEACHERS[backbone])
    config, wanted = net.config(), preset(backbone)
    assert {key: config[key] for key in wanted if key in config} == {
        key: value for key, value in wanted.items() if key in config
    }
    assert preset_family(backbone) == type(net).__name__.lower()
    folder = ASSETS / PACKAGED[TEACHERS[backbone]]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6


def test_provenance_gives_the_held_out_loss_that_is_measured(backbone):
    record = read_json(ASSETS / PACKAGED[TEACHERS[backbone]] / "provenance.json", "provenance")
    process, _ = process_and_sampler(backbone)
    _, _, images, labels = digit_split()
    # The shipped weights are rounded; another machine's arithmetic differs less than that.
    found = HeldOutLoss(process, images, labels)(load(TEACHERS[backbone]))["loss"]
    assert found == pytest.approx(record["rounding"]["held_out_loss_float16"], rel=1e-4)
    assert found == pytest.approx(record["metrics"]["held_out_loss"], rel=1e-3)


def test_has_not_memorised(backbone):
    record = read_json(ASSETS / PACKAGED[TEACHERS[backbone]] / "provenance.json", "provenance")
    report = record["report"]
    assert report["held_out"]["loss"] < 1.1 * report["train"]["loss"]
    for samples in report["samples"]:
        assert samples["nearness"]["share_below_median"] < 0.5
        assert samples["nearness"]["share_below_p5"] < 0.05


def test_samples_are_recognised(backbone):
    process, sampler = process_and_sampler(backbone)
    labels = torch.arange(50) % 10
    samples = generate(load(TEACHERS[backbone]), process, sampler, labels, 0, Guidance(1.5))
    assert accuracy(load_digits_classifier(), samples.clamp(-1, 1), labels) >= 0.9
