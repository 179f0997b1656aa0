"""From what a user asks for to a budget of units."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.errors import InputError
from tinyfusion.metrics.latency import LatencyTable, Setting, measure_latency, setting_of
from tinyfusion.metrics.speed import macs, parameters
from tinyfusion.pipeline.budgets import Wanted
from tinyfusion.pipeline.pruning import planned
from tinyfusion.pipeline.recovery_checks import expected
from tinyfusion.pruners.contract import Choice
from tinyfusion.pruners.fixed import Indices
from tinyfusion.pruners.patterns import Uniform
from tinyfusion.pruners.random import Random
from tinyfusion.pruners.selectors import TopK
from tinyfusion.pruners.sensitivity import Sensitivity
from tinyfusion.recovery.objective import Objective
from tinyfusion.scheme import parse_scheme
from tinyfusion.surgery import prune


class Groups:
    """A pruner that can decide within groups, or has to."""

    uses_scheme = True

    def __init__(self, needs: bool) -> None:
        self.needs_scheme = needs

    def choose(self, context: Any) -> Any:
        raise AssertionError


ANY, NEEDS = Groups(False), Groups(True)


@pytest.fixture
def net() -> DiT:
    torch.manual_seed(0)
    return DiT(input_size=4, in_channels=1, hidden_size=16, depth=8, num_heads=2, num_classes=3)


def test_half_of_the_units_where_nothing_is_said(net) -> None:
    budget = Wanted().budget(net, ANY)
    assert budget.keep == 4 and budget.scheme is None and budget.units == net.units()
    branches = Wanted(units="branches").budget(net, Random())
    assert branches.keep == 8 and branches.count == 16
    assert branches.units[1].name == "blocks.0.mlp"
    assert Wanted().budget(net, NEEDS).scheme == parse_scheme("1:2", 8)


def test_groups_are_those_that_are_asked_for(net) -> None:
    assert Wanted("2:4").budget(net, ANY).scheme == parse_scheme("2:4", 8)
    assert Wanted("2:4").budget(net, Uniform()).scheme is None
    assert Wanted("2:4").budget(net, Uniform()).keep == 4
    assert Wanted("even", keep=2).budget(net, ANY).scheme == parse_scheme("1:4", 8)
    assert Wanted(keep=2).budget(net, NEEDS).scheme == parse_scheme("1:4", 8)
    assert Wanted(keep=2).budget(net, ANY).scheme is None
    with pytest.raises(InputError, match=r"scheme=2:4 keeps 4 of 8 blocks but keep=3"):
        Wanted("2:4", keep=3).budget(net, ANY)


def test_half_of_the_blocks_stand_for_a_number_that_is_not_known(net) -> None:
    class Own:
        uses_scheme = uses_keep = False

        def choose(self, context: object) -> Choice:
            raise AssertionError

    decision = planned(Own(), net, Wanted())
    assert len(decision.kept) == net.depth // 2 and decision.source_depth == net.depth
    assert expected(Own(), net, Wanted(), Objective()) is None


@pytest.mark.parametrize("measure", ["parameters", "macs"])
@pytest.mark.parametrize("kind", ["blocks", "branches"])
def test_shares_are_of_the_whole_network_and_are_met(net, measure: str, kind: str) -> None:
    count = {"parameters": parameters, "macs": macs}[measure]
    whole = count(net)
    wanted = replace(Wanted(units=kind), **{measure: 0.6})
    budget = wanted.budget(net, Random())
    assert budget.measure == measure and len(set(budget.costs)) == (1 if kind == "blocks" else 2)
    small = prune(net, planned(Random(), net, wanted))
    assert count(small) <= 0.6 * whole
    # Not one more unit fits.
    assert count(small) + min(budget.costs) > 0.6 * whole
    for factor, suffix in ((1e3, "k"), (1e6, "M"), (1e9, "B" if measure == "parameters" else "G")):
        absolute = replace(wanted, **{measure: f"{0.6 * whole / factor:.12f}{suffix}"})
        assert absolute.budget(net, Random()).limit == pytest.approx(budget.limit, abs=1e-2)
    assert (
        replace(wanted, **{measure: int(0.6 * whole)}).budget(net, Random()).limit <= budget.limit
    )


def test_constraints_are_laid_over_the_units(net) -> None:
    wanted = Wanted(keep=6, units="branches", protected=["blocks.0", "blocks.7.mlp"], minimum=3)
    budget = wanted.budget(net, Random())
    assert budget.protected == {0, 1, 15}, "a block's name means all its branches"
    assert Wanted(keep=6, protected=[0, "blocks.7"]).budget(net, ANY).protected == {0, 7}
    assert [(m.units, m.count) for m in budget.minimums] == [(tuple(range(16)), 3)]
    parts = Wanted(keep=4, minimum=[[1, 2], [0, 4], [2, 2]]).budget(net, ANY)
    assert [(m.units, m.count) for m in parts.minimums] == [((0, 1), 1), ((6, 7), 2)]


@pytest.mark.parametrize(
    ("wanted", "pruner", "said"),
    [
        (dict(keep=0), ANY, "keep=0 must be between 1 and 7"),
        (dict(keep=8), ANY, "keep=8 must be between 1 and 7"),
        (dict(keep=16, units="branches"), Random(), "keep=16 must be between 1 and 15"),
        (dict(scheme="1:2", parameters=0.5), ANY, "scheme=1:2 says .* so does budget.parameters"),
        (dict(scheme="1:2", units="branches"), Random(), "scheme=1:2 groups blocks, but units=b"),
        (dict(keep=4, macs=0.5), ANY, "budget.macs=0.5 and keep=4 are two budgets"),
        (dict(macs=0.5, latency=0.5), ANY, "budget.macs=0.5 and budget.latency=0.5 are two"),
        (dict(units="branches"), Uniform(), "units=branches: Uniform chooses among blocks"),
        (dict(units="heads"), Random(), "units=heads: Random chooses among blocks or branches"),
        (dict(parameters=0.01), ANY, r"parameters=0\.01 .* can't be met: .* share of 0\.\d+"),
        (dict(parameters="999M"), ANY, "would remove nothing"),
        (dict(parameters="many"), ANY, "budget.parameters=many must be a share below 1, such as"),
        (dict(parameters="50%"), ANY, "budget.parameters=50% must be .* such as 340M"),
        (dict(parameters=-0.5), ANY, "budget.parameters=-0.5 must be a share"),
        (dict(parameters=1.5), ANY, "budget.parameters=1.5 must be a share"),
        (dict(parameters=float("inf")), ANY, "budget.parameters=inf must be a share"),
        (dict(macs="20ms"), ANY, "budget.macs=20ms must be a share .* such as 60G"),
        (dict(keep=2, protected=[0, 1, 2]), ANY, r"must stay \(3 protected\) it is 3, the"),
        (dict(keep=2, protected=[8]), ANY, r"no unit 8; valid: 0\.\.7, or names such as"),
        (dict(keep=2, protected=["blocks.0.attn"]), ANY, "no unit 'blocks.0.attn'"),
        (dict(keep=2, minimum=3), ANY, r"must stay \(3 of blocks\.0\.\.blocks\.7\) it is 3, the"),
        (dict(keep=2, minimum=-1), ANY, "budget.minimum=-1 must not be negative"),
        (dict(keep=2, minimum=[[1, 9]]), ANY, r"\[1,9\] ends with number 8, but .* is number 7"),
        (dict(keep=2, minimum=[[5, 4]]), ANY, r"\[5,4\] asks for 5 of 4 blocks; valid: 0\.\.4"),
        (dict(keep=2, minimum="x"), ANY, "budget.minimum=x must be a number of units, or a list"),
        (dict(keep=2, minimum=[["x"]]), ANY, "budget.minimum.* is not a .at least, size. pair"),
        (dict(keep=2, minimum=[]), ANY, r"budget\.minimum=\[\] has no groups; valid: a list of"),
        (dict(keep=2, protected=None), ANY, "budget.protected=None must be a list of units"),
        (dict(keep=2, protected="blocks.0"), ANY, "budget.protected=blocks.0 must be a list"),
        (dict(latency=0.5, batch_size=0), ANY, "budget.batch_size=0 must be at least 1"),
        (dict(keep="7"), ANY, "keep='7' must be a whole number"),
        (dict(keep=7.0), ANY, r"keep=7\.0 must be a whole number"),
        (dict(latency=0.5, batch_size="a"), ANY, "budget.batch_size='a' must be a whole"),
        (dict(keep=2, table="x.json"), ANY, "budget.table=x.json is of latencies, but"),
        (dict(keep=2, batch_size=8), ANY, "budget.batch_size=8 is of latencies, but"),
        (dict(latency=20), ANY, r"budget\.latency=20 must be .* time in s, ms or us, such as"),
        (dict(scheme="even", macs=0.5), ANY, r"equal groups .* budget\.macs=0\.5 does not say"),
        (dict(units="branches", protected=[0]), Random(), r"no unit 0; valid: .*, or blocks\.0 f"),
        (dict(scheme="2:4", keep=3), Uniform(), "scheme=2:4 keeps 4 of 8 blocks but keep=3"),
        (dict(scheme="3:5"), Uniform(), "scheme"),
        (dict(parameters=0.5, protected=range(7)), ANY, r"=0\.5 \(22,028\): with what must"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused(net, wanted, pruner, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        Wanted(**wanted).budget(net, pruner)
    assert len(str(refused.value).splitlines()) == 1


def test_an_unknown_key_of_a_budget_is_named() -> None:
    with pytest.raises(InputError, match=r"budget\.flops is not known; valid: parameters, macs, l"):
        Wanted.of(None, None, "blocks", {"flops": 0.5})
    with pytest.raises(InputError, match=r"budget=0\.5 must be a mapping, such as"):
        Wanted.of(None, None, "blocks", 0.5)


def test_what_a_pruner_ignores_is_said() -> None:
    wanted = Wanted("1:2", units="branches", protected=[3], minimum=2)
    assert wanted.ignored(Indices([0])) == [
        "scheme=1:2, units=branches, budget.protected=[3], budget.minimum=2: not used, as "
        "pruner=indices says itself what stays"
    ]
    assert Wanted().ignored(Indices([0])) == [] == Wanted(keep=4).ignored(Uniform())
    assert Wanted("1:2").ignored(ANY) == []
    assert Wanted("1:2").ignored(Uniform()) == [
        "scheme=1:2 says no more than how many blocks stay: pruner=uniform does not choose within "
        "groups (pruner=learned does)"
    ]
    assert Wanted("even", keep=4).ignored(Uniform())[0].startswith("scheme=even is not used: prun")
    assert "selector=grouped does" in Wanted("1:2").ignored(Sensitivity(TopK()))[0]


@pytest.mark.parametrize("text", ["0.5", " 5e-1 "])
def test_a_share_in_quotes_is_a_share(net, text: str) -> None:
    assert Wanted(macs=text).budget(net, ANY).limit == Wanted(macs=0.5).budget(net, ANY).limit
    assert Wanted(latency=text).unmeasured() == Wanted(macs=0.5)
    assert Wanted(latency="20ms", batch_size=3).unmeasured() == Wanted(macs=0.5)


def test_a_network_without_branches_says_so(net) -> None:
    from tests.pruners.conftest import Stack

    with pytest.raises(InputError, match=r"units=branches: .* name no branches"):
        Wanted(units="branches").budget(Stack(*[torch.relu] * 3), Random())


# -- latency -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("work_as_time")
def test_latency_is_measured_where_it_is_used(net, tmp_path) -> None:
    units, here = net.units("branches"), setting_of(net, 4, "32-true", False)
    table = measure_latency(net, units, here, rounds=2, repeats=1)
    assert set(table.seconds) == {unit.name for unit in units} and table.whole > 0
    assert min(table.seconds.values()) > 0
    assert len(set(table.seconds.values())) == 2, "attention and MLP; the blocks are alike"
    table.save(tmp_path / "latency.json")
    again = LatencyTable.load(tmp_path / "latency.json")
    assert again == table
    again.check(here, "x")
    for key, value in (
        ("model", "DiT, 8 blocks"),
        ("device", "TPU"),
        ("batch_size", 5),
        ("precision", "16"),
        ("compiled", True),
    ):
        with pytest.raises(InputError, match=rf"was measured with {key}=.* this run has {key}="):
            again.check(replace(here, **{key: value}), "x")
    with pytest.raises(InputError, match=r"the table has no blocks\.0"):
        again.of(net.units())
    # Together, units take what is between the whole forward and that without them.
    assert 0 < table.rest < table.whole
    assert sum(table.of(units)) == pytest.approx(table.whole - table.rest)


def test_a_budget_of_latency_counts_what_is_always_there(net) -> None:
    seconds = {unit.name: 0.1 + 0.1 * (unit.index == 7) for unit in net.units()}
    table = LatencyTable(Setting("m", "x", 1, "32-true", False), 1.2, 0.3, seconds)
    half = Wanted(latency=0.5).budget(net, ANY, table)
    assert half.limit == pytest.approx(0.6 - 0.3) and sum(half.costs) == pytest.approx(0.9)
    assert Wanted(latency="600ms").budget(net, ANY, table).limit == pytest.approx(half.limit)
    assert half.record()["latency"] == pytest.approx(0.6)
    assert str(half) == "budget.latency=0.5 (0.6)"
    # Units are scaled: timed by themselves they had taken twice as long.
    double = LatencyTable(table.setting, 1.2, 0.3, {k: 2 * v for k, v in seconds.items()})
    assert double.of(net.units()) == pytest.approx(half.costs)


@pytest.mark.parametrize("content", ["{}", '{"setting": {}, "whole": 1, "seconds": {}}', "[1]"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json' is no latency table; valid: a latency\.json"):
        LatencyTable.load(tmp_path / "x.json")
    with pytest.raises(InputError, match=r"latency table file .* is a folder"):
        LatencyTable.load(tmp_path)
