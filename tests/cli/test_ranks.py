"""Further ranks of a distributed run train along and write nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyfusion.stages import run


def test_a_further_rank_neither_scores_nor_logs(tf, root, monkeypatch) -> None:
    for name in ("score", "write_sizes"):
        monkeypatch.setattr(run, name, lambda *_: pytest.fail("a further rank scored"))
    monkeypatch.setattr("tinyfusion.stages.job._claim", lambda _: pytest.fail("took the folder"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    # A pruner and a decision that need no other rank to wait for.
    folder = root / "shared"
    monkeypatch.setattr(run, "recover", lambda *_: None)
    result = tf("run", "pruner=random", "logger=wandb", f"hydra.run.dir={folder}")
    assert result.status == 0, result.err
    assert result.out == ""
    assert [f for f in Path(folder).rglob("*") if f.is_file()] == []
