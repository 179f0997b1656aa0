"""Killed at any moment, resumed by folder: the result is that of an uninterrupted run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from tinyfusion.cli import main
from tinyfusion.errors import TrainingDivergedError
from tinyfusion.pruners.random import Random
from tinyfusion.training.module import DenoiserTraining

STEPS = tuple(f"training.{phase}.steps=15" for phase in ("mask_learning", "recovery"))


def test_killed_three_times(tf, root, killed_when, assert_same_files) -> None:
    fixed = ("recovery=masked_kd", "trainer.resume_every=5", "trainer.log_every=2", *STEPS)
    whole, broken = root / "whole", root / "broken"
    assert tf("run", *fixed, f"hydra.run.dir={whole}").status == 0
    arguments = (whole / "command.txt").read_text().split()[1:]

    start = [*arguments, f"hydra.run.dir={broken}"]
    killed_when((broken / "prune/resume.ckpt").is_file, start)
    assert not (broken / "decision.json").exists()
    # What a kill in the middle of writing leaves behind.
    (broken / "prune/.resume.0123abcd.ckpt").write_bytes(b"half")

    go_on = ["run", f"resume={broken}"]
    killed_when((broken / "recover/resume.ckpt").is_file, go_on)
    assert not (broken / "recovered").exists()
    assert_same_files(whole, broken, "decision.json", "pruned/model.safetensors")
    assert not (broken / "prune/.resume.0123abcd.ckpt").exists()

    recovered = broken / "recovered/config.json"
    killed_when(lambda: recovered.is_file() and not list(broken.glob("*/resume.ckpt")), go_on)
    assert not (broken / "metrics.json").exists()

    assert main(go_on) == 0
    assert_same_files(
        whole,
        broken,
        "decision.json",
        "prune/decision.png",
        "prune/decision_trace.json",
        "recovered/model.safetensors",
        "recovered/config.json",
        "recovered_live/model.safetensors",
        "samples.png",
    )
    scores = [json.loads((f / "metrics.json").read_text())["models"] for f in (whole, broken)]
    assert scores[0]["recovered"]["fid"] == scores[1]["recovered"]["fid"]
    # Nothing is lost from the curves either: two parts, from the start and from the resumption.
    logged = sorted((broken / "recover/log").glob("version_*/metrics.csv"))
    assert len(logged) == 2


def test_a_finished_run_is_left_alone(tf, only_run) -> None:
    assert tf("prune", "pruner=random").status == 0
    folder = only_run("prune")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    result = tf("prune", f"resume={folder}", exact=True)
    assert result.status == 0
    assert result.out == f"prune: {folder} is finished; nothing to do\n"
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


class _Stop(BaseException):
    """Ends a run on the spot, as a kill would."""


def test_resume_of_a_sweep_finishes_and_starts_runs(tf, root, monkeypatch) -> None:
    choose, seen = Random.choose, []

    def stopped(self, context):
        seen.append(context.seed)
        if context.seed == 1:
            raise _Stop
        return choose(self, context)

    with monkeypatch.context() as patch:
        patch.setattr(Random, "choose", stopped)
        with pytest.raises(_Stop):
            tf("prune", "-m", "pruner=random", "seed=0,1,2")
    assert seen == [0, 1] and len(list(root.rglob("finished.json"))) == 1
    (sweep,) = (root / "prune").iterdir()
    result = tf("prune", f"resume={sweep}", exact=True)
    assert result.status == 0, result.err
    assert "is finished; nothing to do" in result.out
    seeds = {json.loads(f.read_text())["seed"] for f in sweep.glob("*/decision.json")}
    assert seeds == {0, 1, 2} and len(list(sweep.glob("*/finished.json"))) == 3
    # Once more, there is nothing left to do; another command is refused.
    assert tf("prune", f"resume={sweep}", exact=True).out.count("nothing to do") == 3
    refused = tf("run", f"resume={sweep}", exact=True)
    assert refused.status == 2 and f"tinyfusion prune resume={sweep}" in refused.err


def test_resume_file_holds_neither_base_nor_teacher(tf, root, model, monkeypatch) -> None:
    """Only LoRA and gates in mask learning, only the student in recovery."""
    kept = {}
    unlink = Path.unlink

    def keep(self, missing_ok=False):
        if self.name == "resume.ckpt" and self.is_file():
            kept[self.parent.name] = torch.load(self, weights_only=True)
        return unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", keep)
    assert tf("run", "trainer.resume_every=2").status == 0
    names = kept["prune"]["state_dict"]
    assert names and all("lora_" in n or "gates" in n for n in names)
    assert all(name.startswith("student.") for name in kept["recover"]["state_dict"])


def test_an_interrupt_from_the_keyboard(tf, only_run, monkeypatch) -> None:
    step = DenoiserTraining.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DenoiserTraining, "training_step", interrupted)
        result = tf("prune", "trainer.resume_every=2")
    assert result.status == 130 and "resume=" in result.err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    folder = only_run("prune")
    assert f"resume={folder}" in result.out
    again = tf("prune", f"resume={folder}", exact=True)
    assert again.status == 0 and "resumed from" in again.out


def test_a_diverging_run_ends_in_one_line_and_keeps_its_checkpoint(tf, only_run, monkeypatch):
    losses = DenoiserTraining.training_step

    def broken(self, batch, batch_idx):
        loss = losses(self, batch, batch_idx)
        return loss * (float("nan") if self.global_step >= 3 else 1.0)

    monkeypatch.setattr(DenoiserTraining, "training_step", broken)
    result = tf("prune", "training.mask_learning.steps=30", "trainer.resume_every=1")
    assert result.status == 1
    assert len(result.err.strip().splitlines()) == 1 and "10 steps in a row" in result.err
    assert (only_run("prune") / "prune/resume.ckpt").is_file()


def test_a_diverging_run_that_is_resumed_ends_in_one_line(tf, only_run, monkeypatch) -> None:
    def broken(self, batch, batch_idx):
        raise TrainingDivergedError("the loss was not finite")

    monkeypatch.setattr(DenoiserTraining, "training_step", broken)
    assert tf("prune").status == 1
    result = tf("prune", f"resume={only_run('prune')}", exact=True)
    assert result.status == 1
    assert result.err == "tinyfusion: error: the loss was not finite\n"


def test_a_failing_run_does_not_end_the_resumption_of_others(tf, root, monkeypatch) -> None:
    choose = Random.choose

    def stopped(self, context):
        raise _Stop

    def diverged(self, context):
        if context.seed == 0:
            raise TrainingDivergedError("the loss was not finite")
        return choose(self, context)

    for seed in (0, 1):
        with monkeypatch.context() as patch, pytest.raises(_Stop):
            patch.setattr(Random, "choose", stopped)
            tf("prune", "pruner=random", f"seed={seed}", f"hydra.run.dir={root}/all/{seed}")
    monkeypatch.setattr(Random, "choose", diverged)
    result = tf("prune", f"resume={root / 'all'}", exact=True)
    assert result.status == 1 and "1 of 2 runs failed" in result.err
    assert "error: 0: the loss was not finite" in result.err
    assert (root / "all/1/finished.json").is_file()


def test_resume_from_another_folder(tf, tmp_path, make_model, monkeypatch) -> None:
    def stopped(self, context):
        raise _Stop

    make_model(tmp_path / "here/model")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with monkeypatch.context() as patch, pytest.raises(_Stop):
        patch.setattr(Random, "choose", stopped)
        tf("prune", "pruner=random", "checkpoint=model", "hydra.run.dir=run", "output_root=out")
    monkeypatch.chdir(tmp_path / "there")
    result = tf("prune", "resume=../here/run", exact=True)
    assert result.status == 0, result.err
    assert not list((tmp_path / "there").iterdir())


def test_a_further_rank_takes_no_lock_and_writes_nothing(tf, only_run, monkeypatch) -> None:
    import fcntl

    assert tf("prune", "pruner=random").status == 0
    folder = only_run("prune")
    (folder / "finished.json").unlink()
    (folder / ".torn.0123abcd.json").write_text("half")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tinyfusion.commands.resume.agree_on_processes", lambda _: None)
    monkeypatch.setattr("tinyfusion.commands.execute.work", lambda *_: None)
    with open(folder / "config.yaml") as first_rank:
        fcntl.flock(first_rank, fcntl.LOCK_EX)
        result = tf("prune", f"resume={folder}", exact=True)
    assert result.status == 0, result.err
    assert result.out == ""
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_two_processes_never_work_in_one_folder(tf, only_run) -> None:
    import fcntl

    assert tf("prune", "pruner=random").status == 0
    folder = only_run("prune")
    (folder / "finished.json").unlink()
    with open(folder / "config.yaml") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = tf("prune", f"resume={folder}", exact=True)
    assert result.status == 2 and "another process is working" in result.err
