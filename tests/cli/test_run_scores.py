"""Scores of `run` and `pretrain`: on all devices, always logged, and shown as they are scored."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from tinyfusion.samplers.generate import Drawing
from tinyfusion.tracking.contract import Tracking

TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp")
SMALL = ("pruner=random", "recovery=finetune", "evaluation.num_samples=30")
SMALL = (*SMALL, "evaluation.batch_size=8", "evaluation.reference_samples=200")


def figures(folder: Path) -> dict[str, Any]:
    """Content of ``metrics.json`` without times."""
    found = json.loads((folder / "metrics.json").read_text())
    times = ("images_per_s", "images_per_s_min", "images_per_s_max", "speed_up")
    for row in found["models"].values():
        for name in times:
            row.pop(name, None)
    return found


def test_a_run_is_scored_on_all_devices(tf, root, on_ranks, assert_same_files) -> None:
    one, two = root / "one", root / "two"
    overrides = ("evaluation.guidance.scale=1.5", f"output_root={root / 'here'}")
    assert tf("run", *SMALL, *overrides, f"hydra.run.dir={one}").status == 0
    shutil.copytree(one, two)
    for name in ("metrics.json", "table.md", "samples.png", "finished.json"):
        (two / name).unlink()
    # Trained on one device, resumed on two; nothing is taken from what the first one has left.
    cfg = OmegaConf.load(two / "config.yaml")
    cfg.trainer.devices, cfg.trainer.strategy = 2, "ddp"
    cfg.output_root = cfg.evaluation.features_folder = str(root / "elsewhere")
    OmegaConf.save(cfg, two / "config.yaml")
    drawn = root / "drawn"
    drawn.mkdir()
    draw = Drawing.draw

    def noted(self: Drawing, batch: int, on_step: Any = None) -> Tensor:
        with open(drawn / os.environ["RANK"], "a") as file:
            file.write(f"{batch if len(self) == 30 else 'shown'} ")
        return draw(self, batch, on_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "draw", noted)
        ranks = on_ranks(2, lambda: tf("run", f"resume={two}", exact=True))
    assert [rank.status for rank in ranks] == [0, 0], ranks
    assert figures(one) == figures(two)
    assert_same_files(one, two, "samples.png")
    # Four models with three seeds each; the pictures are the first rank's alone.
    first, second = ((drawn / rank).read_text().split() for rank in "01")
    assert first == ["0", "2"] * 12 + ["shown"] * 3 * 2 and second == ["1", "3"] * 12
    assert ranks[1].out == "" and ranks[1].err == ""


@pytest.mark.slow
def test_a_model_is_pretrained_and_scored_on_two_ranks(tf, root, on_ranks) -> None:
    small = ("backbone.hidden_size=16", "backbone.depth=2", "evaluation.batch_size=8")
    assert tf("pretrain", *small, f"hydra.run.dir={root / 'one'}").status == 0
    two = (*TWO, "trainer.num_workers=0", f"hydra.run.dir={root / 'two'}")
    ranks = on_ranks(2, lambda: tf("pretrain", *small, *two))
    assert [rank.status for rank in ranks] == [0, 0], ranks
    one, two = (
        json.loads((root / name / "metrics.json").read_text())["model"] for name in ("one", "two")
    )
    assert one == pytest.approx(two, rel=1e-3)
    assert ranks[1].out == ""


def test_scores_of_a_run_that_was_killed_before_logging_them_are_logged(
    tf, root, monkeypatch
) -> None:
    folder = root / "run"

    def killed(self: Tracking, values: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "scores", killed)
        assert tf("run", *SMALL, f"hydra.run.dir={folder}").status == 130
    rows = json.loads((folder / "metrics.json").read_text())["models"]
    logged: dict[str, Any] = {}
    monkeypatch.setattr(Tracking, "scores", lambda self, values: logged.update(values))
    assert tf("run", f"resume={folder}", exact=True).status == 0
    assert logged["recovered/fid"] == rows["recovered"]["fid"]
    assert logged["source/depth"] == 4


def test_samples_are_shown_as_they_are_scored(tf, root, monkeypatch) -> None:
    """With the guidance and in the precision of the protocol."""
    shown: dict[str, Tensor] = {}
    monkeypatch.setattr(
        "tinyfusion.figures.grid.comparison_grid", lambda rows, path: shown.update(rows)
    )
    monkeypatch.setattr("tinyfusion.tracking.trackers.Trackers.image", lambda *_: None)
    scored: list[Tensor] = []
    draw = Drawing.draw

    def noted(self: Drawing, batch: int, on_step: Any = None) -> Tensor:
        scored.append(draw(self, batch, on_step))
        return scored[-1]

    monkeypatch.setattr(Drawing, "draw", noted)
    # What is shown has the run's seed + 1; here it is scored as well.
    result = tf(
        "run",
        *SMALL,
        "seed=6",
        "evaluation.seeds=[7]",
        "evaluation.num_samples=10",
        "evaluation.batch_size=256",
        "evaluation.guidance.scale=4",
        "trainer.precision=bf16-mixed",
        f"hydra.run.dir={root / 'run'}",
    )
    assert result.status == 0, result.err
    assert list(shown) == ["source", "pruned", "recovered"]
    for name, images in zip(shown, scored[:3], strict=True):
        assert torch.equal(shown[name], images), name
