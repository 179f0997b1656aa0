"""One pass over noised images: what each block is seen to do, for one and for two networks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.sit import SiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.metrics.activations import check_request, collect, over_all_blocks
from tinyfusion.metrics.state_summary import summarise
from tinyfusion.processes.contract import Process
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.masked import MaskedDiffusion

SIGMAS = (1.0, 2.0)


class Images(ImageSource):
    """Random images, no two alike."""

    num_classes, channels, size = 3, 1, 4

    def __init__(self, count: int) -> None:
        self.images = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices, augment, rows):
        assert augment is None and rows is None
        return self.images[indices], ClassLabels(indices % 3)

    def held_out(self):
        raise AssertionError("the pass is over training images")

    reference = held_out


def randomised(net: Backbone) -> Backbone:
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def make_dit(depth: int = 3) -> Backbone:
    return randomised(DiT(4, 2, 1, hidden_size=8, depth=depth, num_heads=2, num_classes=3))


FAMILIES: dict[str, Callable[[], tuple[Backbone, Process]]] = {
    "dit": lambda: (make_dit(), GaussianDiffusion()),
    "sit": lambda: (
        randomised(SiT(4, 2, 1, hidden_size=8, depth=3, num_heads=2, num_classes=3)),
        Interpolant(),
    ),
    "mar": lambda: (
        randomised(
            MAR(4, 8, 2, 1, 2, in_channels=1, num_classes=3, buffer_size=2, head_depth=1,
                head_width=8)
        ),
        MaskedDiffusion(),
    ),
}  # fmt: skip


def record(net: Backbone) -> list[list[Tensor]]:
    """All states that come out of each block from now on."""
    seen: list[list[Tensor]] = [[] for _ in net.blocks]
    for found, block in zip(seen, net.blocks, strict=True):
        block.register_forward_hook(lambda _m, _i, out, found=found: found.append(out))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_is_described_by_all_its_states(family: str) -> None:
    net, process = FAMILIES[family]()
    seen = record(net)
    found = collect(net, process, Images(40), 40, SIGMAS, batch_size=7)
    assert found.teacher == [] and found.pairs == []
    assert len(found.student) == net.depth == 3
    for summary, batches in zip(found.student, seen, strict=True):
        flat = torch.cat([states.flatten() for states in batches]).double()
        assert summary.count == len(flat)
        assert (summary.low, summary.high) == (float(flat.min()), float(flat.max()))
        assert summary.std == pytest.approx(float(flat.std()), rel=1e-9)
        dropped = [sum(summarise(s, SIGMAS).dropped[i] for s in batches) for i in range(2)]
        assert list(summary.dropped) == dropped and dropped[0] > dropped[1] > 0
    together = over_all_blocks(found.student)
    assert together.count == sum(summary.count for summary in found.student)
    assert together.high == max(summary.high for summary in found.student)
    assert not any(states.requires_grad for batches in seen for states in batches)


def test_masked_images_are_seen_with_shares_that_cover_their_range() -> None:
    net, _ = FAMILIES["mar"]()
    process = MaskedDiffusion(mask_ratio_min=0.25)
    seen = record(net)
    collect(net, process, Images(64), 64, SIGMAS)
    # The encoder sees what is not hidden, the decoder everything.
    visible = [states.shape[1] - 2 for states in seen[0]]
    assert len(visible) == process.strata
    assert visible == sorted(visible, reverse=True) and visible[0] >= 8 and visible[-1] == 0
    assert {states.shape[1] for states in seen[2]} == {18}


def test_networks_see_the_same_whatever_the_batch() -> None:
    process = GaussianDiffusion()
    inputs: dict[str, list[tuple[Tensor, ...]]] = {}
    for name, size in (("small", 6), ("large", 99)):
        net, teacher = make_dit(), make_dit(2)
        for key, model in ((f"{name} student", net), (f"{name} teacher", teacher)):
            inputs[key] = []
            model.register_forward_pre_hook(lambda _m, args, key=key: inputs[key].append(args))
        collect(net, process, Images(150), 150, SIGMAS, teacher, batch_size=size)
    assert [len(batch[0]) for batch in inputs["large student"]] == [99, 29, 22]
    whole_inputs = {
        key: [torch.cat(parts) for parts in zip(*batches, strict=True)]
        for key, batches in inputs.items()
    }
    expected = whole_inputs.pop("large student")
    for found in whole_inputs.values():
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # No image twice, and times that cover the schedule.
    assert len(expected[0].unique(dim=0)) == 150
    first = expected[1][:128].sort().values / 1000
    assert float((first - torch.arange(128) / 128).abs().max()) < 1 / 128 + 1 / 1000


def test_another_seed_is_another_noise() -> None:
    net = make_dit()
    low = [
        collect(net, GaussianDiffusion(), Images(8), 8, SIGMAS, seed=s).student[0].low
        for s in (0, 0, 1)
    ]
    assert low[0] == low[1] != low[2]


def test_a_student_like_its_teacher_is_at_no_distance() -> None:
    teacher = make_dit()
    student = copy.deepcopy(teacher)
    pairs = [(0, 0), (1, 1), (2, 2)]
    found = collect(student, GaussianDiffusion(), Images(20), 20, SIGMAS, teacher, pairs, 8)
    for pair, mine, theirs in zip(found.pairs, found.student, found.teacher, strict=True):
        assert (pair.samples, pair.entries) == (20, mine.count)
        assert all(sum(values) == 0 for values in pair.distances.values())
        assert tuple(pair.dropped) == mine.dropped == theirs.dropped


def test_pairs_compare_the_blocks_that_they_name() -> None:
    teacher, student = make_dit(4), make_dit(2)
    theirs, mine = record(teacher), record(student)
    pairs = [(0, 2), (1, 2)]
    found = collect(student, GaussianDiffusion(), Images(9), 9, SIGMAS, teacher, pairs)
    for pair, (a, b) in zip(found.pairs, pairs, strict=True):
        distance = ((mine[a][0] - theirs[b][0]) ** 2).flatten(1).mean(1).sum()
        assert pair.distances["none"][0] == pytest.approx(float(distance), rel=1e-5)


def test_what_is_kept_does_not_grow_with_the_images() -> None:
    net, teacher = make_dit(2), make_dit(3)
    kept = []
    for samples in (4, 200):
        found = collect(
            net, GaussianDiffusion(), Images(200), samples, SIGMAS, teacher, [(1, 2)], 4
        )
        kept.append([summary.bytes for summary in (*found.student, *found.teacher)])
        assert found.student[0].count == samples * 4 * 8
    assert kept[0] == kept[1]


def test_modes_are_given_back_and_dropout_is_off() -> None:
    net = make_dit().train()
    net.blocks[1].eval()
    before = [module.training for module in net.modules()]
    modes = []
    net.blocks[0].register_forward_hook(lambda module, *_: modes.append(module.training))
    collect(net, GaussianDiffusion(), Images(4), 4, SIGMAS, make_dit())
    assert modes == [False] and [module.training for module in net.modules()] == before


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ((0, 4, [2.0]), "samples=0 must be at least 1"),
        ((41, 4, [2.0]), "samples=41: the data has 40 training images; give samples=40 or fewer"),
        ((4, 0, [2.0]), "batch_size=0 must be at least 1"),
        ((4, 4, []), r"num_sigmas=\[\] names no threshold"),
        ((4, 4, [2.0, -1.0]), r"num_sigmas=\[2,-1\]: -1 is no number of deviations"),
        ((4, 4, [0.0]), "valid: above 0"),
        ((4, 4, [float("nan")]), "nan is no number"),
        ((4, 4, [float("inf")]), "inf is no number"),
        ((4, 4, [2.0, 4.0, 2.0]), "names a threshold twice"),
    ],
)
def test_what_can_not_be_collected_is_refused(request_, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_request(Images(40), *request_)
    with pytest.raises(InputError, match=message):
        samples, batch_size, sigmas = request_
        collect(make_dit(), GaussianDiffusion(), Images(40), samples, sigmas, batch_size=batch_size)
