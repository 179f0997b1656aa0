"""A backbone whose blocks name their branches: units, gates, surgery and files know nothing else.

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyfusion.backbones import forwards
from tinyfusion.backbones.branches import Branch, BranchedBlock
from tinyfusion.backbones.contract import Backbone, BlockRunner, recompute_blocks, run_plain
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.layers import Attention
from tinyfusion.backbones.unit_view import seen_as_blocks
from tinyfusion.changes import Replacement
from tinyfusion.checkpoints import load, read_checkpoint, save_model
from tinyfusion.checkpoints.lineage import lineage
from tinyfusion.conditioning import ClassLabels
from tinyfusion.conformance import check_backbone
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.gating.gated_backbone import GatedBackbone
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.metrics.speed import macs
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.scheme import parse_scheme
from tinyfusion.surgery import prune
from tinyfusion.units import BLOCKS, BRANCHES

D, T = 8, 4


class Block(BranchedBlock):
    """Attention and MLP, each behind a norm that is shifted by its own rows of one projection."""

    branch_names = ("attn", "mlp")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = Attention(width, 2)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.shifts = nn.Linear(width, 2 * width)
        self.left = list(self.branch_names)

    def branches(self) -> dict[str, Branch]:
        return {name: partial(self.run_branch, name) for name in self.left}

    def rows(self, name: str) -> slice:
        width = self.shifts.in_features
        return slice(self.left.index(name) * width, (self.left.index(name) + 1) * width)

    def run_branch(self, name: str, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
        rows = self.rows(name)
        shift_BD = F.linear(condition_BD, self.shifts.weight[rows], self.shifts.bias[rows])
        normed_BTD = F.layer_norm(x_BTD, x_BTD.shape[-1:]) + shift_BD[:, None]
        return x_BTD + getattr(self, name)(normed_BTD)

    def remove_branch(self, name: str) -> None:
        stays = torch.ones(len(self.shifts.bias), dtype=torch.bool)
        stays[self.rows(name)] = False
        indices = stays.nonzero().flatten().to(self.shifts.bias.device)
        for key, old in self.shifts.named_parameters():
            new = nn.Parameter(old.detach().index_select(0, indices), old.requires_grad)
            setattr(self.shifts, key, new)
        self.shifts.out_features = len(indices)
        delattr(self, name)
        self.left.remove(name)


class Branched(Backbone):
    """One token a row of a 4x4 image."""

    in_channels, input_size, num_classes = 1, 4, 3

    def __init__(self, depth: int = 3, removed_branches: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, D), nn.Linear(D, 4)
        self.label = nn.Embedding(4, D)
        self.blocks = nn.ModuleList(Block(D) for _ in range(depth))
        self.remove_branches(removed_branches)

    def config(self) -> dict[str, Any]:
        return {"depth": self.depth, "removed_branches": list(self.removed_branches)}

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, run_block: BlockRunner = run_plain
    ) -> Tensor:
        states, condition = self.enter(x.squeeze(1)), self.label(y) + t[:, None] / 1000
        for index, block in enumerate(self.blocks):
            states = run_block(index, block, states, condition)
        return self.leave(states)[:, None]


@pytest.fixture
def net() -> Branched:
    return Branched()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(5, 1, 4, 4), torch.arange(5) * 100, torch.arange(5) % 4


def skipping(net: Backbone, *names: str) -> BlockRunner:
    """Leaves out the branches of these names."""
    units = net.units(BRANCHES)

    def runner(number: int, branch: Branch, states: Tensor, condition: Any) -> Tensor:
        return states if units[number].name in names else branch(states, condition)

    return net.run_units(units, runner)


def test_branches_are_units_with_their_costs(net: Branched) -> None:
    units = net.units(BRANCHES, macs=True)
    names = [f"blocks.{i}.{name}" for i in range(3) for name in ("attn", "mlp")]
    assert [unit.name for unit in units] == names
    assert [unit.index for unit in units] == [0, 0, 1, 1, 2, 2]
    modulation = D * D + D
    attn = (D * 3 * D + 3 * D) + (D * D + D) + modulation
    mlp = (D * 2 * D + 2 * D) + (2 * D * D + D) + modulation
    assert [unit.parameters for unit in units] == [attn, mlp] * 3
    attn = T * D * 3 * D + 2 * T * T * D + T * D * D + D * D
    mlp = 2 * T * D * 2 * D + D * D
    assert [unit.macs for unit in units] == [attn, mlp] * 3
    blocks = net.units(macs=True)
    assert [unit.name for unit in blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(unit.macs == attn + mlp for unit in blocks)
    embeddings = 2 * T * 4 * D
    assert sum(unit.macs for unit in blocks) + embeddings == macs(net)
    assert sum(unit.parameters for unit in units) == sum(unit.parameters for unit in blocks)
    # With its last branch a block goes, and all that is left of it.
    last = prune(net, Decision(removed=("blocks.1.attn",))).units(BRANCHES)
    assert [unit.name for unit in last] == [name for name in names if name != "blocks.1.attn"]
    assert last[2].parameters == units[3].parameters


def test_counting_leaves_the_weights_where_they_are(net: Branched) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.units(BRANCHES, macs=True)
    assert all(torch.equal(value, before[n]) for n, value in net.state_dict().items())


def test_a_block_is_its_branches_in_order(net: Branched, inputs: tuple[Tensor, ...]) -> None:
    seen = []

    def runner(number: int, unit: Branch, states: Tensor, condition: Any) -> Tensor:
        seen.append(number)
        return run_plain(number, unit, states, condition)

    assert torch.equal(net(*inputs, run_block=net.run_units(BRANCHES, runner)), net(*inputs))
    assert seen == list(range(6))


def test_units_of_several_kinds_run_in_one_forward(net: Branched, inputs: tuple) -> None:
    interval = net.units("intervals")[0]
    branch = net.units(BRANCHES)[5]
    assert (interval.name, branch.name) == ("blocks.0:2", "blocks.2.mlp")
    seen = []

    def runner(number: int, unit: Branch, states: Tensor, condition: Any) -> Tensor:
        seen.append(number)
        return unit(states, condition)

    listed = [branch, interval]
    assert torch.equal(net(*inputs, run_block=net.run_units(listed, runner)), net(*inputs))
    assert seen == [1, 0]
    without = net.run_units([interval], lambda number, unit, states, condition: states)
    assert torch.equal(net(*inputs, run_block=without), prune(net, [2])(*inputs))


@pytest.mark.parametrize(
    "names", [("blocks.1", "blocks.0:2"), ("blocks.1", "blocks.1.attn"), ("blocks.1.attn",) * 2]
)
def test_overlapping_units_can_not_run_in_one_forward(net: Branched, names: tuple) -> None:
    kinds = ("blocks", "intervals", BRANCHES)
    units = {unit.name: unit for kind in kinds for unit in net.units(kind)}
    for order in (names, names[::-1]):
        with pytest.raises(InputError, match="overlaps another unit"):
            net.run_units([units[name] for name in order], run_plain)
    with pytest.raises(InputError, match="overlaps another unit"):
        net.run_units("intervals", run_plain)


@pytest.mark.parametrize("recompute", [False, True])
def test_gates_over_branches_have_the_gradients_of_what_they_blend(
    net: Branched, inputs: tuple[Tensor, ...], recompute: bool
) -> None:
    recompute_blocks(net, recompute)
    gates = PatternGates(parse_scheme("1:2", 6))
    gumbel_BK = torch.randn(5, gates.num_draws)
    model = GatedBackbone(net, gates, net.units(BRANCHES))
    out = model(inputs[:2], ClassLabels(inputs[2]), gumbel_BK)
    mask_BL = gates(gumbel_BK).round().bool()
    for row, keep_L in enumerate(mask_BL):
        units = net.units(BRANCHES)
        gone = [unit.name for unit, keep in zip(units, keep_L, strict=True) if not keep]
        alone = net(*(x[row : row + 1] for x in inputs), run_block=skipping(net, *gone))
        torch.testing.assert_close(out[row : row + 1], alone)
    out.square().mean().backward()
    for gate in gates.groups:
        assert (gate.logits_C.grad != 0).all()
    with pytest.raises(AssertionError):
        GatedBackbone(net, gates)  # three blocks


def test_recomputed_blocks_are_recomputed_when_their_branches_are_run(
    net: Branched, inputs: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    recompute_blocks(net)
    calls = []
    original = forwards.checkpoint
    monkeypatch.setattr(
        forwards, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    out = net(*inputs, run_block=net.run_units(BRANCHES, run_plain))
    assert len(calls) == 3
    assert torch.equal(out, net(*inputs))


def test_removing_a_branch_is_the_identity_in_its_place(
    net: Branched, inputs: tuple[Tensor, ...]
) -> None:
    gone = ("blocks.0.mlp", "blocks.2.attn")
    pruned = prune(net, Decision(removed=gone))
    assert torch.equal(pruned(*inputs), net(*inputs, run_block=skipping(net, *gone)))
    units = {unit.name: unit for unit in net.units(BRANCHES)}
    fewer = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in pruned.parameters())
    assert fewer == sum(units[name].parameters for name in gone)
    assert not any(n.startswith(("blocks.0.mlp", "blocks.2.attn")) for n in pruned.state_dict())
    # What is shared keeps the rows of the branch that stays.
    assert torch.equal(pruned.blocks[2].shifts.weight, net.blocks[2].shifts.weight[D:])
    assert pruned.kept_from is None
    assert len(net.units(BRANCHES)) == 6


@pytest.mark.parametrize("kind", [BLOCKS, BRANCHES])
def test_parameters_of_units_are_what_goes_with_them(net: Branched, kind: str) -> None:
    units = net.units(kind)
    owned = [net.own_parameters(unit) for unit in units]
    sizes = [sum(own.values.numel() for own in parts.values()) for parts in owned]
    assert sizes == [unit.parameters for unit in units]
    places = dict(net.named_parameters())
    assert all(own.parameter is places[name] for parts in owned for name, own in parts.items())
    assert seen_as_blocks(net, units).own_parameters(units[1]).keys() == owned[1].keys()


def test_a_branch_has_its_rows_of_what_it_shares(net: Branched) -> None:
    (attn, mlp), shifts = net.units(BRANCHES)[2:4], net.blocks[1].shifts
    for unit, rows in ((attn, slice(0, D)), (mlp, slice(D, 2 * D))):
        owned = net.own_parameters(unit)
        for name in ("weight", "bias"):
            values = owned[f"blocks.1.shifts.{name}"].values
            assert torch.equal(values, getattr(shifts, name)[rows])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    own = net.own_parameters(mlp)["blocks.1.shifts.weight"]
    own.write(own.values + 1)
    changed = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert changed == {"blocks.1.shifts.weight"}
    assert torch.equal(shifts.weight[:D], before["blocks.1.shifts.weight"][:D])
    assert torch.equal(shifts.weight[D:], before["blocks.1.shifts.weight"][D:] + 1)


def test_the_last_branch_of_a_block_has_all_that_is_left(net: Branched) -> None:
    net.remove_branches(["blocks.0.attn"])
    (unit, *_) = net.units(BRANCHES)
    left = {f"blocks.0.{name}" for name, _ in net.blocks[0].named_parameters()}
    assert net.own_parameters(unit).keys() == left


def test_blocks_branches_and_intervals_go_together(net: Branched, inputs: tuple) -> None:
    net = Branched(depth=6)
    decision = Decision(
        (0, 5), 6, removed=("blocks.5.attn", "blocks.3.mlp"), replaced=(Replacement(2, 5, 3),)
    )
    pruned = prune(net, decision)
    assert decision.origins == pruned.kept_from == (0, 3, 5)
    assert decision.dropped == (1,)
    assert pruned.removed_branches == ("blocks.1.mlp", "blocks.2.attn")
    stay = (0, 3, 5)
    units = net.units(BRANCHES)
    gone = {unit.name for unit in units if unit.index not in stay} | set(decision.removed)
    assert torch.equal(pruned(*inputs), net(*inputs, run_block=skipping(net, *gone)))
    # Names count blocks as they now are.
    again = prune(pruned, Decision((1, 2), 3, removed=()))
    assert again.removed_branches == ("blocks.0.mlp", "blocks.1.attn")
    assert again.kept_from == (3, 5)


def test_what_is_left_is_stored_and_loaded(net: Branched, inputs: tuple, tmp_path: Path) -> None:
    decision = Decision((0, 2), 3, "by_hand", removed=("blocks.2.mlp",), budget={"parameters": 0.5})
    pruned = prune(net, decision).eval()
    folder = save_model(pruned, tmp_path / "pruned")
    again = load(folder)
    assert again.config() == pruned.config() == {"depth": 2, "removed_branches": ["blocks.1.mlp"]}
    assert torch.equal(again(*inputs), pruned(*inputs))
    file = decision.save(tmp_path / decision.file_name)
    assert Decision.load(file) == decision
    known = lineage(read_checkpoint(folder))["decision"]
    assert (known["method"], known["removed"]) == ("by_hand", ["blocks.2.mlp"])
    assert "without blocks.2.mlp" in decision.description


def test_it_keeps_the_contract(net: Branched) -> None:
    title = "a network without a branch computes what skipping it does"
    assert title in check_backbone(net, GaussianDiffusion())
    assert title in check_backbone(Branched(3, ("blocks.1.mlp",)))


class Dependent(Block):
    def run_branch(self, name: str, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
        return super().run_branch(name, x_BTD, condition_BD) * len(self.left)


class Writing(Block):
    def remove_branch(self, name: str) -> None:
        self.shifts.weight.data[self.rows(name)] = 0
        super().remove_branch(name)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Dependent, "what a branch does must not depend on the others"),
        (Writing, "remove_branch wrote into 'blocks.0.shifts.weight'"),
    ],
)
def test_blocks_that_do_not_are_told_what_is_wrong(
    kind: type[Block], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "Block", kind)
    with pytest.raises(InputError, match=message):
        check_backbone(Branched(2))


def test_branches_that_are_no_block_are_told(net: Branched, monkeypatch) -> None:
    monkeypatch.setattr(
        Block,
        "forward",
        lambda self, states, condition, run_branch=None: (
            BranchedBlock.forward(self, states, condition, *([run_branch] if run_branch else []))
            * (1 if run_branch else 2)
        ),
    )
    with pytest.raises(InputError, match="each branch must hold its own skip connection"):
        check_backbone(net)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ({"removed": ("blocks.3.attn",)}, "has no branch 'blocks.3.attn'; valid: blocks.0.attn, "),
        ({"removed": ("blocks.1.heads",)}, "has no branch 'blocks.1.heads'"),
        (
            {"removed": ("blocks.1.attn", "blocks.1.mlp")},
            "all branches of block 1: leave",
        ),
        ({"kept": (0, 2), "removed": ("blocks.1.mlp",)}, "blocks.1.mlp of a block that does not"),
    ],
)
def test_branches_that_can_not_go_are_refused(net: Branched, decision: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prune(net, Decision(**{"source_depth": 3, **decision}))


def test_a_branch_goes_once(net: Branched) -> None:
    pruned = prune(net, Decision(removed=("blocks.1.mlp",)))
    with pytest.raises(InputError, match=r"has no branch 'blocks\.1\.mlp'"):
        prune(pruned, Decision((1, 2), 3, removed=("blocks.1.mlp",)))


class Unbranched(Branched):
    """Its blocks are layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(D, D) for _ in range(2))


def test_backbones_that_name_no_branches_say_so() -> None:
    net = Unbranched()
    with pytest.raises(InputError, match="the blocks of a Unbranched name no branches"):
        net.units(BRANCHES)
    with pytest.raises(InputError, match="has no units of kind 'heads'; valid: blocks, branches"):
        net.units("heads")
    with pytest.raises(InputError, match="name no branches"):
        prune(net, Decision(removed=("blocks.0.attn",)))
    with pytest.raises(InputError, match="channels don't run one after the other"):
        DiT(4, 2, 1, 8, depth=2, num_heads=2, num_classes=3).run_units("channels", run_plain)


def test_a_unit_is_named_where_it_is(net: Branched) -> None:
    unit = net.units(BRANCHES)[3]
    assert replace(unit.place, part="") == net.units()[1].place
