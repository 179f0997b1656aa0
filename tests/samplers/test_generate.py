from __future__ import annotations

import pytest
import torch

import tinyfusion.samplers.generate as generate_module
from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.pixels import to_uint8
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.generate import balanced_labels, generate
from tinyfusion.samplers.guidance import Guidance

PROCESS = GaussianDiffusion(clip=True)
SAMPLER = AncestralSampler(4)


def test_images_do_not_depend_on_batching(tiny):
    labels = balanced_labels(7, 3)
    guidance = Guidance(2.0)
    whole = generate(tiny, PROCESS, SAMPLER, labels, seed=5, guidance=guidance)
    parts = generate(tiny, PROCESS, SAMPLER, labels, seed=5, guidance=guidance, batch_size=3)
    rest = generate(tiny, PROCESS, SAMPLER, labels[4:], seed=5, guidance=guidance, first_index=4)
    assert whole.shape == (7, 1, 4, 4) and whole.dtype == torch.float32
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(rest, whole[4:], rtol=0, atol=1e-4)


def test_seed_and_index_change_the_image(tiny):
    first = generate(tiny, PROCESS, SAMPLER, torch.zeros(2, dtype=torch.long), seed=0)
    other = generate(tiny, PROCESS, SAMPLER, torch.zeros(2, dtype=torch.long), seed=1)
    assert (first[0] - first[1]).abs().max() > 0.1
    assert (first - other).abs().max() > 0.1
    again = generate(tiny, PROCESS, SAMPLER, torch.zeros(2, dtype=torch.long), seed=0)
    assert torch.equal(first, again)


def test_training_modes_are_restored_module_by_module(tiny):
    tiny.train()
    tiny.blocks[0].eval()
    modes = []
    tiny.blocks[1].register_forward_pre_hook(lambda module, _: modes.append(module.training))
    before = [module.training for module in tiny.modules()]
    generate(tiny, PROCESS, SAMPLER, torch.tensor([0]), seed=0)
    assert [module.training for module in tiny.modules()] == before
    assert modes == [False] * 4


def test_progress_bar_reaches_its_end_and_is_silent_unless_wanted(tiny, monkeypatch, capsys):
    bars = []

    class Recorded(generate_module.Progress):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            bars.append(self)

    monkeypatch.setattr(generate_module, "Progress", Recorded)
    labels = torch.tensor([0, 1, 2])
    generate(tiny, PROCESS, SAMPLER, labels, seed=0, batch_size=2, progress=True)
    task = bars[0]._bar.tasks[0]
    assert task.finished and task.total == 3
    capsys.readouterr()
    generate(tiny, PROCESS, SAMPLER, labels, seed=0)
    assert bars[1]._bar is None and capsys.readouterr().out == ""


def test_no_labels_give_no_images(tiny):
    nothing = generate(tiny, PROCESS, SAMPLER, torch.tensor([], dtype=torch.long), seed=0)
    assert nothing.shape == (0, 1, 4, 4)


@pytest.mark.parametrize("label", [-1, 4])
def test_unknown_label_is_refused(tiny, label):
    with pytest.raises(InputError, match=f"label {label} does not exist.*0..2"):
        generate(tiny, PROCESS, SAMPLER, torch.tensor([0, label]), seed=0)
    with pytest.raises(InputError, match=f"label {label} does not exist.*0..2"):
        generate(tiny, PROCESS, SAMPLER, ClassLabels(torch.tensor([0, label])), seed=0)


def test_the_label_of_no_class_needs_a_null_class(tiny):
    no_class = torch.tensor([0, 3])
    assert generate(tiny, PROCESS, SAMPLER, no_class, seed=0).isfinite().all()
    net = DiT(4, 2, 1, 16, 1, 2, num_classes=3, class_dropout_prob=0.0)
    with pytest.raises(InputError, match=r"label 3 .* classes 0\.\.2 \(it has no null class\)"):
        generate(net, PROCESS, SAMPLER, no_class, seed=0)


def test_what_is_no_conditioning_is_refused(tiny):
    with pytest.raises(InputError, match="type list; valid: a tensor of class labels"):
        generate(tiny, PROCESS, SAMPLER, [0, 1], seed=0)
    for value in (torch.tensor([0.0]), torch.tensor(3)):
        with pytest.raises(InputError, match=r"valid: integers of shape \(N,\)"):
            generate(tiny, PROCESS, SAMPLER, value, seed=0)


def test_bad_batch_size_and_steps_are_refused(tiny):
    with pytest.raises(InputError, match="batch_size=0"):
        generate(tiny, PROCESS, SAMPLER, torch.tensor([0]), seed=0, batch_size=0)
    with pytest.raises(InputError, match="1001"):
        generate(tiny, PROCESS, AncestralSampler(1001), torch.tensor([0]), seed=0)


def test_balanced_labels_cycle():
    assert balanced_labels(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_to_uint8_rounds_and_clamps():
    values = torch.tensor([-3.0, -1.0, -1 + 1 / 255, 0.0, 0.5, 1.0, 9.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 128, 191, 255, 255]
    every = torch.arange(256)
    assert torch.equal(to_uint8(every / 127.5 - 1).long(), every)


class Unchecked:
    """A sampler of somebody's own, which looks at nothing itself."""

    process_kind = "masked"

    def num_steps(self, process) -> int:
        return 1

    def __call__(self, net, process, noise, conditioning, guidance=None, on_step=None):
        return noise()


def test_processes_and_samplers_of_another_kind_are_refused(tiny):
    labels = torch.zeros(2, dtype=torch.long)
    with pytest.raises(InputError, match="DiT needs a process of kind 'diffusion'"):
        generate(tiny, Interpolant(), Unchecked(), labels, seed=0)
    with pytest.raises(InputError, match="Unchecked samples by processes of kind 'masked'"):
        generate(tiny, PROCESS, Unchecked(), labels, seed=0)
