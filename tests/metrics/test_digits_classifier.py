"""The shipped classifier: accuracy, provenance, training."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch

from tinyfusion.data.digits import digit_split
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, sha256_of
from tinyfusion.metrics.classifier import (
    ASSET,
    accuracy,
    load_digits_classifier,
    train_classifier,
)

ASSETS = files("tinyfusion.assets")


def test_shipped_classifier_knows_held_out_digits_also_after_quantisation():
    _, _, images, labels = digit_split()
    net = load_digits_classifier()
    levels = ((images + 1) * 127.5).round() / 127.5 - 1
    assert accuracy(net, images, labels) >= 0.97
    assert accuracy(net, levels, labels) >= 0.97


def test_provenance_describes_the_shipped_weights():
    _, _, images, labels = digit_split()
    record = read_json(str(ASSETS / ASSET.replace(".safetensors", ".json")), "provenance")
    assert record["sha256"] == sha256_of(str(ASSETS / ASSET))
    # One image of 297 may flip between machines.
    measured = accuracy(load_digits_classifier(), images, labels)
    assert record["heldout_accuracy"] == pytest.approx(measured, abs=1.5 / 297)


def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    load_digits_classifier()
    assert torch.equal(state, torch.get_rng_state())


def test_training_learns_repeats_and_leaves_the_global_generator_alone():
    images, labels, held_images, held_labels = digit_split()
    state = torch.get_rng_state()
    first = train_classifier(images, labels, seed=3, steps=60)
    again = train_classifier(images, labels, seed=3, steps=60)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.head.weight, again.head.weight)
    assert accuracy(first, held_images, held_labels) > 0.7


@pytest.mark.parametrize("steps, batch_size, message", [(0, 4, "steps"), (1, 9, "batch_size")])
def test_impossible_training_is_refused(steps, batch_size, message):
    images = torch.zeros(8, 1, 8, 8)
    labels = torch.zeros(8, dtype=torch.long)
    with pytest.raises(InputError, match=message):
        train_classifier(images, labels, steps=steps, batch_size=batch_size)
