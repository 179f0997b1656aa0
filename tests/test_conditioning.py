"""What networks are told: rows that are picked, joined, dropped and moved, whatever they hold."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels, Conditioning, as_conditioning
from tinyfusion.data.datamodule import Batch, TrainingData
from tinyfusion.errors import InputError
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.processes.gaussian import GaussianDiffusion


def dit(**options: float) -> DiT:
    return DiT(4, 2, 1, hidden_size=16, depth=2, num_heads=2, num_classes=3, **options)


@pytest.fixture(params=["labels", "captions"])
def told(request, two_streams) -> tuple[Conditioning, torch.nn.Module]:
    """A conditioning of five samples, no two alike, and a network that takes it."""
    if request.param == "labels":
        return ClassLabels(torch.tensor([2, 0, 1, 3, 3])), dit()
    return two_streams.captions(torch.arange(5)), two_streams.TwoStreams()


def same(one: Conditioning, other: Conditioning) -> bool:
    assert type(one) is type(other)
    pairs = zip(one.arguments(), other.arguments(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_rows_are_picked_and_joined(told) -> None:
    whole, _ = told
    assert len(whole) == 5 and len(whole[1:3]) == 2 and len(whole[:0]) == 0
    mask = torch.tensor([True, False, True, False, False])
    assert same(whole[mask], whole[torch.tensor([0, 2])])
    assert same(whole.cat([whole[:2], whole[2:]]), whole)
    assert same(whole.cat([whole] * 2)[5:], whole)
    assert not same(whole[:2], whole[torch.tensor([1, 0])])


def test_the_null_takes_the_place_of_what_is_dropped_and_of_nothing_else(told) -> None:
    whole, net = told
    null = whole.null(net)
    assert len(null) == 5 and same(null[:1], null[4:])
    dropped = whole.drop(torch.tensor([False, True, True, False, False]), net)
    wanted = whole.cat([whole[:1], null[:2], whole[3:]])
    assert same(dropped, wanted) and not same(dropped, whole)
    assert same(whole.drop(torch.zeros(5, dtype=torch.bool), net), whole)


def test_it_survives_a_worker_and_another_device(told) -> None:
    whole, _ = told
    assert same(pickle.loads(pickle.dumps(whole)), whole)
    moved = whole.to("meta")
    assert type(moved) is type(whole)
    assert {tensor.device.type for tensor in moved.arguments()} == {"meta"}


def test_batches_are_pinned_and_moved_with_their_conditioning(told, two_streams, monkeypatch):
    whole, _ = told
    pinned, copies = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x, *_: pinned.append(x) or x)
    batch = pin_memory(Batch(torch.zeros(5, 1, 4, 4), whole, 7, 0))
    assert [id(x) for x in pinned] == [id(x) for x in (batch.images, *whole.arguments())]
    assert isinstance(batch, Batch) and (batch.step, batch.rows.count) == (7, 5)

    data = TrainingData(two_streams.Captioned(), 0, "test", 1, 5)
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    tensors = [moved.images, *moved.conditioning.arguments()]
    assert {tensor.device.type for tensor in tensors} == {"meta"} and moved.step == 7
    # A copy that waits for the GPU would hold up every step.
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **options: copies.append(options) or x)
    data.transfer_batch_to_device(batch, torch.device("cuda"), 0)
    data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    count = len(tensors)
    assert copies == [{"non_blocking": True}] * count + [{"non_blocking": False}] * count


def test_labels_are_class_labels_and_others_stay() -> None:
    labels = torch.tensor([1, 2])
    assert as_conditioning(labels).labels is labels
    told = ClassLabels(labels)
    assert as_conditioning(told) is told
    assert repr(told) == "ClassLabels([1, 2])" and told.record()["labels"] is labels


@pytest.mark.parametrize("label", [-1, 3, 4])
def test_labels_that_a_model_does_not_have_are_refused(label: int) -> None:
    """With a null class label 3 of a model of three classes is one; without, it is not."""
    with_null, without = dit(), dit(class_dropout_prob=0.0)
    labels = ClassLabels(torch.tensor([0, label, 2]))
    images = torch.zeros(3, 1, 4, 4)
    batch = HeldOutLoss(GaussianDiffusion(), images, labels, repeats=1)
    message = rf"label {label} does not exist; the model has classes 0\.\.2 \({{}}\)$"
    refused = pytest.raises(InputError, match=message.format("it has no null class"))
    with refused:
        labels.check(without)
    with refused:
        batch(without)
    with refused:
        CandidateScores(without, batch)
    if label == 3:
        labels.check(with_null)
        assert batch(with_null)["loss"] > 0
        return
    with pytest.raises(InputError, match=message.format("and 3, the null class")):
        labels.check(with_null)


def test_a_model_without_classes_takes_no_labels(two_streams) -> None:
    with pytest.raises(InputError, match="not class-conditional, so it takes no class labels"):
        ClassLabels(torch.tensor([0])).check(two_streams.TwoStreams())


def test_examples_are_the_classes_in_turn() -> None:
    assert dit().example_conditioning(5).labels.tolist() == [0, 1, 2, 0, 1]
    assert dit().example_conditioning(2, "meta").labels.device.type == "meta"
    net = dit()
    net.num_classes = 0
    with pytest.raises(NotImplementedError, match=r"DiT has no classes: .* example_conditioning"):
        net.example_conditioning()
