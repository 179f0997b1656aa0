"""Rounds that can't be meant are refused before the first one; the others are laid out rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import save_model
from tinyfusion.commands import iterative
from tinyfusion.commands.iterative import LastRound, check_rounds, earlier_rounds
from tinyfusion.commands.recover import RECOVERED
from tinyfusion.errors import InputError
from tinyfusion.settings.check import check
from tinyfusion.settings.objects import Objects, objects_of
from tinyfusion.settings.overview import conf_folder
from tinyfusion.surgery import prune

SMALL = ("iterative.depths=[4,2]", "trainer.threads=1", "pruner=uniform")


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def net_of(depth: int = 8, width: int = 16) -> DiT:
    return DiT(8, 2, 1, hidden_size=width, depth=depth, num_heads=2, num_classes=10)


def config(*overrides: str) -> DictConfig:
    return check(compose("run", ["experiment=iterative", *SMALL, *overrides]))


@pytest.fixture
def checked() -> Callable[..., Backbone | None]:
    """``checked("keep=2")``: what `check_rounds` says of a model of eight blocks."""

    def run(*overrides: str, net: Backbone | None = None) -> Backbone | None:
        source = net_of() if net is None else net
        return check_rounds(objects_of(config(*overrides)), source)

    return run


@pytest.mark.parametrize(
    ("overrides", "message"),
    {
        ("iterative.depths=[]",): r"iterative\.depths=\[\] must list what each round leaves",
        ("iterative.depths=[4]",): r"iterative\.depths=\[4\] .* give keep=",
        ("iterative.depths=[2,4]",): r"iterative\.depths=\[2,4\] must decrease",
        ("iterative.depths=[4,4]",): "must decrease",
        ("iterative.depths=[4,0]",): "end with at least 1",
        ("iterative.depths=[8,4]",): "the first round must leave fewer blocks than the 8",
        ("iterative.depths=[9,4]",): "the first round must leave fewer blocks than the 8",
        ("iterative.weights=nonsense",): "weights='nonsense' is not known; valid: previous, source",
        ("iterative.teacher=both",): "teacher='both' is not known; valid: previous, source",
        ("decision=a.json",): r"decision=a\.json: with iterative= .* give decision=null",
        ("keep=2",): "keep=2: with iterative= .* give keep=null",
        ("scheme=1:2",): "scheme=1:2: with iterative= .* give scheme=null",
        ("units=branches",): "units=branches: rounds choose blocks",
        ("budget.protected=[0]",): r"budget.protected=\[0\]: blocks are numbered anew",
        ("budget.minimum=[[1,8]]",): "budget.minimum=.* are numbered anew",
        ("start=fresh",): "start=fresh: .* give start=kept",
        ("teacher.path=digits",): r"teacher\.path=digits: .* iterative\.teacher",
        ("pruner=random", "pruner.candidates=9", "pruner.marks={a:[0,1,2,3]}"): (
            "pruner.marks holds choices among the blocks of one model"
        ),
        ("pruner=random", "pruner.candidates=9", "pruner.losses=a.csv"): "give pruner.losses=null",
        ("pruner=diff_pruning",): "does not choose a given number of blocks",
        ("pruner=indices", "pruner.kept=[0,1]"): "does not choose a given number of blocks",
        ("pruner=learned", "iterative.depths=[5,3]", "iterative.weights=source"): "",
        ("iterative.previous=/no/such",): "'/no/such' does not exist",
    }.items(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused(checked, overrides, message: str) -> None:
    if not message:
        assert checked(*overrides) is None
        return
    with pytest.raises(InputError, match=message):
        checked(*overrides)


def test_wrong_types_are_refused_by_the_schema() -> None:
    for override in ("iterative.depths=[a,b]", "+iterative.other=1"):
        with pytest.raises(InputError, match="iterative"):
            config(override)


def test_groups_of_every_round_are_checked_before_the_first(checked) -> None:
    # 16 of 28 are 4:7, but 7 of 16 would be one group with 11,440 patterns: still allowed.
    checked("pruner=learned", "iterative.depths=[16,7]", net=net_of(28))
    with pytest.raises(InputError, match=r"keep=11 in equal groups .* 11 of 26 blocks"):
        checked("pruner=learned", "iterative.depths=[26,11]", net=net_of(28))


def saved(net: Backbone, folder: Path) -> str:
    return str(save_model(net, folder, {}))


def test_a_previous_model_has_to_be_one(checked, tmp_path: Path) -> None:
    def refused(net: Backbone, message: str, source: Backbone | None = None) -> None:
        path = saved(net, tmp_path / "other")
        with pytest.raises(InputError, match=message):
            checked(f"iterative.previous={path}", net=source)

    refused(net_of(4), "is not known to be pruned: its file records no kept blocks")
    refused(prune(net_of(), [0, 2, 4]), "has 3 blocks, but iterative.depths says")
    refused(prune(net_of(9), [0, 2, 4, 8]), r"keeps blocks \[0, 2, 4, 8\], which are not all in")
    refused(prune(net_of(8, 32), [0, 2, 4, 6]), "has hidden_size=32, but the model .* has 16")
    narrow = DiT(8, 2, 1, hidden_size=16, depth=8, num_heads=2, num_classes=10, mlp_width=40)
    refused(prune(narrow, [0, 2, 4, 6]), "has mlp_width=40, but the model that is pruned has None")
    middle = prune(net_of(9), range(0, 8))
    path = saved(prune(middle, [0, 2, 4, 6]), tmp_path / "right")
    assert checked(f"iterative.previous={path}", net=middle).kept_from == (0, 2, 4, 6)


@pytest.fixture
def laid_out(tmp_path: Path, monkeypatch) -> Callable[..., LastRound]:
    """What the last round begins with; rounds before it are cut but not recovered."""

    def run(*overrides: str, distils: bool = True) -> LastRound:
        made: list[tuple[str, int, int]] = []

        def cut(objects: Objects, net: Backbone, has_teacher: bool, folder: Path) -> Backbone:
            assert has_teacher == distils
            made.append((Path(objects.checkpoint).name, net.depth, objects.wanted.keep))
            assert objects.config["iterative"] is None and objects.wanted.scheme == "even"
            assert objects.config["keep"] == objects.wanted.keep and folder.parent == tmp_path
            return prune(net, range(objects.wanted.keep))

        monkeypatch.setattr(iterative, "_made", cut)
        source = net_of()
        objects = objects_of(config("checkpoint=first", *overrides))
        last = earlier_rounds(objects, source, source if distils else None, None, tmp_path)
        run.made, run.source = made, source
        return last

    return run


@pytest.mark.parametrize("weights", ["previous", "source"])
@pytest.mark.parametrize("teacher", ["previous", "source"])
def test_the_four_rows_of_the_table(laid_out, weights: str, teacher: str) -> None:
    last = laid_out(f"iterative.weights={weights}", f"iterative.teacher={teacher}")
    depths = {"previous": 4, "source": 8}
    assert (last.net.depth, last.teacher.depth) == (depths[weights], depths[teacher])
    assert (last.net is laid_out.source) == (weights == "source")
    assert (last.teacher is laid_out.source) == (teacher == "source")
    assert last.objects.wanted.keep == 2
    checkpoint = {"previous": "recovered", "source": "first"}[weights]
    assert Path(last.objects.checkpoint).name == checkpoint
    needed = (weights, teacher) != ("source", "source")
    assert laid_out.made == ([("first", 8, 4)] if needed else [])
    assert list(last.earlier) == (["round 1"] if needed else [])


def test_three_rounds_and_a_recovery_without_teacher(laid_out) -> None:
    last = laid_out("iterative.depths=[6,4,3]")
    assert laid_out.made == [("first", 8, 6), ("recovered", 6, 4)]
    assert (last.net.depth, last.teacher.depth, last.objects.wanted.keep) == (4, 4, 3)
    assert [net.depth for net in last.earlier.values()] == [6, 4]
    # Without distillation there is no teacher that would need the round before.
    last = laid_out("iterative.weights=source", distils=False)
    assert laid_out.made == [] and last.teacher is None and last.net.depth == 8


def test_a_network_that_was_a_teacher_can_be_cut_again(tmp_path: Path, monkeypatch) -> None:
    def distilled(
        folder: Path,
        objects: Objects,
        runner: object,
        student: Backbone,
        teacher: Backbone,
        _: object,
    ) -> None:
        teacher.requires_grad_(False)
        save_model(student, folder / RECOVERED, {})

    monkeypatch.setattr(iterative, "recover_into", distilled)
    net = net_of(8)
    before = [p.requires_grad for p in net.parameters()]
    first = saved(net, tmp_path / "first")
    objects = iterative.round_objects(objects_of(config(f"checkpoint={first}")), first, 4, 1)
    assert iterative._made(objects, net, True, tmp_path).depth == 4
    assert [p.requires_grad for p in net.parameters()] == before and not all(before)
