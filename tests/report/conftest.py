"""Folders of runs as the commands leave them, without running any."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tinyfusion.figures.grid import comparison_grid

MakeRun = Callable[..., Path]

PROTOCOL = {
    "num_samples": 200, "sampler": "AncestralSampler(steps=20)", "guidance": 1.0,
    "guidance_interval": None, "sampling_seeds": [0], "reference": None, "extractor": "digits",
}  # fmt: skip


def curve(file: Path, steps: range, header: str = "train/loss", start: float = 1.0) -> None:
    """Write a log of training."""
    file.parent.mkdir(parents=True)
    lines = [f"0,{step},{start / (1 + step)}" for step in steps]
    file.write_text(f"epoch,step,{header}\n" + "\n".join(lines) + "\n", encoding="utf-8")


def sheet(folder: Path) -> bytes:
    """A sheet of samples of three models, drawn once for each test."""
    file = folder / "sheet.png"
    if not file.exists():
        # As coarse as small pictures are: noise would take seconds to make small.
        draws = np.random.default_rng(0).integers(0, 240, (3, 10, 3, 8, 8), np.uint8)
        draws = draws.repeat(4, axis=-1).repeat(4, axis=-2)
        rows = dict(zip(("source", "pruned", "recovered"), draws, strict=True))
        comparison_grid(rows, file)
    return file.read_bytes()


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Make the folder of a run with some settings and figures; returns it."""

    def make(
        name: str,
        fid: float | None = 2.0,
        pruner: str = "learned",
        keep: int = 2,
        seed: int = 0,
        state: str = "finished",
        speed_up: float | None = None,
        pictures: bool = False,
        steps: int = 0,
        **config: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        content = {
            "command": "run", "seed": seed, "checkpoint": "digits", "keep": keep,
            "output_root": str(folder), "pruner": {"_target_": f"package.{pruner.title()}"},
            "training": {"recovery": {"steps": 100}}, **config,
        }  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        (folder / "command.txt").write_text(f"tinyfusion run pruner={pruner} keep={keep}\n")
        if state != "finished":
            last = "run stopped; continue with resume=x" if state == "failed" else "step 3"
            (folder / "run.log").write_text(f"2026-01-01 00:00:00,000 ERROR {last}\n")
            return folder
        recovered: dict[str, Any] = {"depth": keep, "parameters": 1000 * keep, "held_out_loss": 0.1}
        recovered |= {} if fid is None else {"fid": fid, "inception_score": 9.0 - fid}
        recovered |= {} if speed_up is None else {"speed_up": speed_up}
        source = {"depth": 4, "parameters": 4000, "fid": 1.0, "held_out_loss": 0.05}
        models = {"source": source, "pruned": {"depth": keep}, "recovered": recovered}
        decision = {"method": pruner, "kept": list(range(keep)), "source_depth": 4}
        metrics = {"models": models, "protocol": PROTOCOL, "floor": {}, "decision": decision}
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        end = {"finished": "2026-01-01", "version": "9.9", "seconds": 61.0, "libraries": {}}
        (folder / "finished.json").write_text(json.dumps(end), encoding="utf-8")
        if steps:
            curve(folder / "recover" / "log" / "version_0" / "metrics.csv", range(steps))
        if pictures:
            for file in ("samples.png", "decision.png"):
                (folder / file).write_bytes(sheet(tmp_path))
        return folder

    return make
