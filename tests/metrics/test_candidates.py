"""Many candidates at once: the same losses as one by one, and no block that could be shared."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, run_plain
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.sit import SiT
from tinyfusion.errors import InputError
from tinyfusion.metrics import candidates
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.metrics.prefix_tree import tree_nodes
from tinyfusion.processes.contract import Process
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.surgery import prune

DEPTH = 6
SETS = [kept for size in range(DEPTH + 1) for kept in combinations(range(DEPTH), size)]
"""Every set, the empty one and that of all blocks among them."""


class Mixing(nn.Module):
    """Adds what it makes of its input, of a table and of two conditions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: dict[str, Any]) -> Tensor:
        (first, second), table = condition["pair"], condition["table"]
        assert len(first) == len(second) == len(x), "conditions belong to the samples"
        return x + torch.tanh(self.linear(x) * first[:, None] + table) * second[:, None]


class Own(Backbone):
    """States pass through code before block 2; conditions are nested."""

    def __init__(self, depth: int = DEPTH, declared: bool = True, lost: bool = True) -> None:
        super().__init__()
        self.in_channels, self.input_size, self.num_classes = 1, 4, 3
        self.declared, self.lost = declared, lost
        self.blocks = nn.ModuleList(Mixing(4) for _ in range(depth))
        self.label = nn.Embedding(4, 4)
        self.between = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(5, 4))

    def config(self) -> dict[str, Any]:
        return {"depth": len(self.blocks)}

    @property
    def borders(self) -> tuple[int, ...]:
        return (2,) if self.declared else ()

    def forward(self, x: Tensor, t: Tensor, y: Tensor, run_block=run_plain) -> Tensor:
        states = x.flatten(2).mT.unflatten(1, (4, 4)).squeeze(-1)
        condition = {
            "pair": (self.label(y), torch.sin(t.float())[:, None].expand(-1, 4)),
            "table": self.table[:4],
        }
        for index, block in enumerate(self.blocks):
            if index == 2 and self.lost:
                states = self.between(states)
            states = run_block(index, block, states, condition)
        return states[:, None]


def varied(net: Backbone) -> Backbone:
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return net


SIZES = {"hidden_size": 8, "num_heads": 2, "in_channels": 1, "num_classes": 3}


def subject(name: str) -> tuple[Backbone, HeldOutLoss]:
    net, process = {
        "dit": lambda: (DiT(4, depth=DEPTH, **SIZES), GaussianDiffusion()),
        "sit": lambda: (SiT(4, depth=DEPTH, **SIZES), Interpolant()),
        "mar": lambda: (
            MAR(4, encoder_depth=2, decoder_depth=4, head_depth=1, head_width=8, **SIZES),
            MaskedDiffusion(patch_size=1),
        ),
        "mar without encoder": lambda: (
            MAR(4, encoder_depth=0, decoder_depth=6, head_depth=1, head_width=8, **SIZES),
            MaskedDiffusion(patch_size=1),
        ),
        "mar without decoder": lambda: (
            MAR(4, encoder_depth=6, decoder_depth=0, head_depth=1, head_width=8, **SIZES),
            MaskedDiffusion(patch_size=1),
        ),
        "own": lambda: (Own(), GaussianDiffusion()),
    }[name]()
    images = torch.rand(10, 1, 4, 4) * 2 - 1
    return varied(net), HeldOutLoss(process, images, torch.arange(10) % 3, repeats=2)


def one_by_one(net: Backbone, calibration: HeldOutLoss, kept) -> Tensor:
    """Output of the network when only some blocks run."""

    def runner(index, block, states, condition):
        return run_plain(index, block, states, condition) if index in kept else states

    return calibration.predict(net, runner)


def prefixes(sets) -> int:
    return len({kept[:length] for kept in sets for length in range(1, len(kept) + 1)})


@pytest.mark.parametrize(
    "name",
    [
        *("dit", "sit", "mar", "own"),
        pytest.param("mar without encoder", marks=pytest.mark.slow),
        pytest.param("mar without decoder", marks=pytest.mark.slow),
    ],
)
def test_losses_and_distances_are_those_of_one_by_one(name):
    net, calibration = subject(name)
    outs = [one_by_one(net, calibration, kept) for kept in SETS]
    wanted = calibration.predict(net)
    expected = [calibration.of(out) for out in outs]
    scores = CandidateScores(net, calibration, branches=5, rows=7)
    losses = list(scores.losses(SETS))
    assert [loss for loss, _ in losses] == pytest.approx([e["loss"] for e in expected], rel=2e-6)
    stderrs = [stderr for _, stderr in losses]
    assert stderrs == pytest.approx([e["loss_stderr"] for e in expected], rel=2e-5)
    distances = list(CandidateScores(net, calibration).distances(SETS, wanted))
    far = [calibration.distance(out, wanted) for out in outs]
    assert distances == pytest.approx(far, rel=2e-6, abs=1e-12)
    # Without a decoder, what is known of hidden tokens depends on no block.
    assert len(set(distances)) == 1 if name == "mar without decoder" else len(set(distances)) > 60


def test_loss_is_that_of_the_pruned_network():
    net, calibration = subject("dit")
    kept = (1, 2, 5)
    ((loss, stderr),) = CandidateScores(net, calibration).losses([kept])
    pruned = calibration(prune(net, kept))
    assert loss == pytest.approx(pruned["loss"], rel=1e-6)
    assert stderr == pytest.approx(pruned["loss_stderr"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "branches"), [("dit", 1), ("dit", 3), ("dit", 16), ("dit", 200), ("mar", 16)]
)
def test_every_node_of_the_tree_is_run_once(name, branches):
    net, calibration = subject(name)
    scores = CandidateScores(net, calibration, branches)
    halves = [kept for kept in SETS if len(kept) == 3]
    list(scores.losses(halves))
    assert scores.block_evaluations == prefixes(halves) == tree_nodes(halves) < 3 * len(halves)
    every = CandidateScores(net, calibration, branches)
    list(every.losses(sorted(SETS)))
    assert every.block_evaluations == prefixes(SETS) == 2**DEPTH - 1
    assert scores.block_evaluations == prefixes(halves), "each counts its own"


def test_blocks_run_as_often_as_is_counted():
    net, calibration = subject("dit")
    samples = 0

    def count(module, inputs):
        nonlocal samples
        samples += len(inputs[0])

    for block in net.blocks:
        block.register_forward_pre_hook(count)
    scores = CandidateScores(net, calibration, branches=4, rows=6)
    halves = [kept for kept in SETS if len(kept) == 3]
    list(scores.losses(halves))
    plain = 3 * 5  # the first candidate's blocks on the first of four pieces, to compare
    assert samples == scores.block_evaluations * len(calibration.conditioning) + plain


@pytest.mark.parametrize(("rows", "most"), [(20, 20), (59, 40), (200, 100)])
def test_new_nodes_of_a_block_run_together_up_to_a_limit(rows, most):
    net, calibration = subject("dit")
    sizes: list[int] = []
    scores = CandidateScores(net, calibration, branches=20, rows=rows)
    for block in net.blocks:
        block.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    list(scores.losses([(first, 5) for first in range(5)]))
    assert max(sizes) == most, "the last block has five new nodes of 20 samples each"


def test_any_order_and_repetition_give_the_same_losses():
    net, calibration = subject("own")
    expected = dict(zip(SETS, CandidateScores(net, calibration).losses(SETS), strict=True))
    shuffled = [*SETS, *SETS[:20]]
    random.Random(0).shuffle(shuffled)
    found = list(CandidateScores(net, calibration, branches=7).losses(shuffled))
    for kept, (loss, _) in zip(shuffled, found, strict=True):
        assert loss == pytest.approx(expected[kept][0], rel=2e-6)


def test_network_is_left_as_it_is_even_between_steps():
    net, calibration = subject("dit")
    net.train()
    following = CandidateScores(net, calibration, branches=2).losses(SETS)
    next(following)
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("branches", [1, 8])
def test_code_between_blocks_has_to_be_declared(branches):
    _, calibration = subject("own")
    net = varied(Own(declared=False))
    with pytest.raises(InputError, match=r"Own: its forward does something between blocks.*border"):
        next(CandidateScores(net, calibration, branches).losses([(0, 4), (1, 3)]))
    harmless = varied(Own(declared=False, lost=False))
    assert len(list(CandidateScores(harmless, calibration, branches).losses([(0, 4)]))) == 1


def test_a_candidate_that_overflows_does_not_hide_the_others():
    net, calibration = subject("own")
    with torch.no_grad():
        net.blocks[0].linear.weight.fill_(float("inf"))
    sets = [(0, 1), (1, 2), (2, 3)]
    losses = [loss for loss, _ in CandidateScores(net, calibration).losses(sets)]
    assert losses[0] != losses[0]
    single = [calibration.of(one_by_one(net, calibration, kept))["loss"] for kept in sets[1:]]
    assert losses[1:] == pytest.approx(single, rel=2e-6)


@dataclass(frozen=True)
class Inner:
    noise: Tensor


class Loose:
    """What a user's own process may make: no dataclass, tensors in other objects."""

    def __init__(self, clean: Tensor, noise: Tensor) -> None:
        self.clean, self.parts = clean, [Inner(noise), {"scale": torch.tensor([1.0, 2.0])}]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.clean + self.parts[0].noise, torch.zeros(len(self.clean), dtype=torch.long)


class OwnProcess(Process):
    kind = "diffusion"

    def corrupt(self, clean, draws):
        return Loose(clean, draws.normal("noise", *clean.shape[1:]))

    def loss(self, out, batch):
        inner, other = batch.parts
        loss = ((out[:, :1] - inner.noise * other["scale"][1]) ** 2).flatten(1).mean(1)
        return {"mse": loss, "loss": loss}

    def distillation_loss(self, student_out, teacher_out, batch, variance):
        raise NotImplementedError


def test_batches_of_a_users_own_process_are_copied_whatever_they_are_made_of():
    net, _ = subject("dit")
    calibration = HeldOutLoss(OwnProcess(), torch.rand(9, 1, 4, 4), torch.arange(9) % 3, repeats=1)
    scores = CandidateScores(net, calibration, branches=3, rows=4)
    for kept, (loss, _) in zip(SETS[:8], scores.losses(SETS[:8]), strict=True):
        expected = calibration.of(one_by_one(net, calibration, kept))["loss"]
        assert loss == pytest.approx(expected, rel=2e-6)


def test_branches_are_counted_from_one():
    net, calibration = subject("dit")
    with pytest.raises(InputError, match="branches=0 must be at least 1"):
        CandidateScores(net, calibration, branches=0)


def test_of_many_samples_only_one_piece_is_held_between_steps():
    net, calibration = subject("dit")
    scores = CandidateScores(net, calibration, branches=2, rows=4)
    held: list[int] = []
    plain = scores._step

    def step(plan, piece, carried, score):
        found = plain(plan, piece, carried, score)
        held.append(sum(len(states) for states in carried.values()))
        for states in carried.values():
            assert states.untyped_storage().nbytes() == states.nbytes, "no part of something larger"
        return found

    scores._step = step
    halves = [kept for kept in SETS if len(kept) == 3]
    found = list(scores.losses(halves))
    assert len(held) == 5 * len(halves) / 2, "20 samples in pieces of 4, two candidates a step"
    assert held[: len(held) // 5] == held[-len(held) // 5 :] and held[len(held) // 5 - 1] == 0
    assert max(held) == 2 * 4, "two blocks in common"
    assert scores.block_evaluations == tree_nodes(halves)
    whole = CandidateScores(net, calibration, rows=20).losses(halves)
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in whole], rel=2e-6)
    assert list(scores.losses([])) == []


@pytest.mark.parametrize(("numbers", "most"), [(1 << 20, 20), (4 * 8 * 7, 7), (1, 1)])
def test_large_hidden_states_run_in_smaller_batches(monkeypatch, numbers, most):
    net, calibration = subject("dit")  # 4 tokens of 8 numbers
    expected = [calibration.of(one_by_one(net, calibration, kept))["loss"] for kept in SETS[-9:]]
    monkeypatch.setitem(candidates.CALL, "cpu", (256, numbers))
    sizes: list[int] = []
    net.blocks[0].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    found = [loss for loss, _ in CandidateScores(net, calibration, 3).losses(SETS[-9:])]
    assert found == pytest.approx(expected, rel=2e-6)
    assert max(sizes) == most


@pytest.mark.parametrize(
    ("free", "most"), [(None, 20), (1 << 30, 20), (2 * 25 * 128 * 5, 5), (0, 1)]
)
def test_little_memory_takes_smaller_batches_and_says_so(monkeypatch, caplog, free, most):
    caplog.set_level("INFO", "tinyfusion")
    net, calibration = subject("dit")  # 4 tokens of 8 numbers of 4 bytes
    monkeypatch.setattr(candidates, "WITHIN", 25 - 3 - net.depth)
    monkeypatch.setattr(candidates, "available_memory", lambda device: free)
    sizes: list[int] = []
    net.blocks[0].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    list(CandidateScores(net, calibration, 3).losses(SETS[-9:]))
    assert max(sizes) == most
    assert ("memory free" in caplog.text) == (free is not None)
