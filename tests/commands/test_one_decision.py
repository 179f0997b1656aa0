"""Ranks that would choose differently all cut by the first one's decision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import save_model
from tinyfusion.commands.loading import runner_of
from tinyfusion.commands.prune import decide
from tinyfusion.decision import Decision
from tinyfusion.pruners.contract import Choice, PruningContext
from tinyfusion.ranks import rank
from tinyfusion.settings.check import check
from tinyfusion.settings.objects import objects_of
from tinyfusion.settings.overview import conf_folder


class ByRank:
    """Keeps the blocks from the rank's number on, as a near-tie on mixed machines may."""

    def choose(self, context: PruningContext) -> Choice:
        return Choice(tuple(range(rank(), rank() + context.keep)))


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def test_all_ranks_take_the_first_ones_decision(tmp_path: Path, on_ranks) -> None:
    net = DiT(8, 2, 1, hidden_size=16, depth=4, num_heads=2, num_classes=10)
    path = save_model(net, tmp_path / "net", {})
    devices = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    cfg = check(
        compose("prune", ["trainer=ddp", *devices, f"checkpoint={path}", "scheme=null", "keep=2"])
    )

    def work() -> tuple[int, ...]:
        objects = replace(objects_of(cfg), pruner=ByRank())
        return decide(objects, net, runner_of(objects, None), tmp_path / "run").kept

    assert on_ranks(2, work) == [(0, 1), (0, 1)]
    assert Decision.load(tmp_path / "run" / "decision.json").kept == (0, 1)
