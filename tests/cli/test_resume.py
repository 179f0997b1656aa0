"""Killed at any moment, resumed by folder: the result is that of an uninterrupted run."""

from __future__ import annotations

import json
import multiprocessing
import os
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


def test_the_same_command_in_the_same_folder_continues(tf, root, killed_when) -> None:
    """As a scheduler starts again what it has interrupted."""
    folder = root / "F"
    line = ["prune", f"hydra.run.dir={folder}", "trainer.resume_every=2", *STEPS]
    assert tf("prune", "seed=7", "pruner=random", f"hydra.run.dir={root / 'G'}").status == 0
    arguments = (root / "G/command.txt").read_text().split()[1:]
    same = [a for a in arguments if not a.startswith(("seed", "pruner", "hydra"))] + line[1:]
    killed_when((folder / "prune/resume.ckpt").is_file, same)
    again = tf(*same, exact=True)
    assert again.status == 0, again.err
    assert again.out.startswith(f"prune: continues the interrupted run in {folder}\n")
    assert "resumed from" in again.out and (folder / "finished.json").is_file()
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    finished = tf(*same, exact=True)
    assert (finished.status, finished.err) == (0, "")
    assert finished.out == f"prune: {folder} is finished; nothing to do\n"
    for change, said in (("seed=3", "seed=0 there, 3 here"), ("+name=x", "name=None there, x")):
        other = tf(*same, change, exact=True)
        assert other.status == 2
        assert f"{folder} already holds a run of another configuration: {said}" in other.err
    other = tf("run", *same[1:], exact=True)
    assert other.status == 2 and "command=prune there, run here and" in other.err
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_a_further_rank_has_nothing_to_do_in_a_finished_run(tf, root, monkeypatch) -> None:
    line = ("pruner=random", f"hydra.run.dir={root / 'F'}")
    assert tf("prune", *line).status == 0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    # As if it had been the run of two devices.
    monkeypatch.setattr("tinyfusion.settings.processes.agree", lambda *_: None)
    monkeypatch.setattr(Random, "choose", None)
    result = tf("prune", *line)
    assert (result.status, result.out, result.err) == (0, "", "")
    refused = tf("prune", *line, "seed=3")
    assert refused.status == 2 and "seed=0 there, 3 here" in refused.err


def test_a_folder_whose_run_died_before_it_began_is_taken(tf, root) -> None:
    (root / "F").mkdir(parents=True)
    (root / "F/config.yaml").touch()
    assert tf("prune", "pruner=random", f"hydra.run.dir={root / 'F'}").status == 0
    (root / "F/config.yaml").write_text("a: [")
    result = tf("prune", "pruner=random", f"hydra.run.dir={root / 'F'}")
    assert result.status == 2 and "F/config.yaml can't be read" in result.err


def test_two_processes_that_start_at_once(tf, root) -> None:
    """Whoever has the lock works; the other one is refused and leaves nothing."""
    import fcntl

    (root / "F").mkdir(parents=True)
    with open(root / "F/config.yaml", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = tf("prune", "pruner=random", f"hydra.run.dir={root / 'F'}")
    assert result.status == 2 and "another process is working" in result.err
    assert [file.name for file in (root / "F").iterdir()] == ["config.yaml"]


def test_the_same_sweep_in_the_same_folder_adds_what_is_missing(tf, root) -> None:
    line = ("-m", "pruner=random", f"hydra.sweep.dir={root / 'S'}")
    assert tf("prune", *line, "seed=0,1").status == 0
    again = tf("prune", *line, "seed=0,1,2")
    assert again.status == 0 and again.out.count("nothing to do") == 2
    assert len(list(root.rglob("finished.json"))) == 3


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_stops_training_at_the_end_of_its_step(tf, only_run, monkeypatch, name) -> None:
    step, number, before = DenoiserTraining.training_step, signal.Signals[name], signal.getsignal

    def interrupted(self, batch, batch_idx):
        if self.global_step == 2:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    handlers = {n: before(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with monkeypatch.context() as patch:
        patch.setattr(DenoiserTraining, "training_step", interrupted)
        result = tf("prune", "trainer.resume_every=100")
    folder = only_run("prune")
    assert result.status == 128 + number
    line = f"interrupted by {name}; continue with: tinyfusion prune resume={folder}"
    assert result.err == f"tinyfusion: {line}\n"
    assert "resume=" not in result.out
    assert torch.load(folder / "prune/resume.ckpt", weights_only=True)["global_step"] == 3
    assert {n: before(n) for n in handlers} == handlers
    again = tf("prune", f"resume={folder}", exact=True)
    assert again.status == 0 and "resumed from" in again.out


def test_a_signal_outside_training_stops_at_once(tf, only_run, monkeypatch) -> None:
    def interrupted(self, context):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")

    with monkeypatch.context() as patch:
        patch.setattr(Random, "choose", interrupted)
        result = tf("prune", "pruner=random")
    assert result.status == 143
    assert f"continue with: tinyfusion prune resume={only_run('prune')}\n" in result.err
    assert tf("prune", f"resume={only_run('prune')}", exact=True).status == 0


def test_an_interrupted_sweep_names_its_own_folder(tf, root, monkeypatch) -> None:
    def interrupted(self, context):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Random, "choose", interrupted)
    result = tf("prune", "-m", "pruner=random", "seed=0,1")
    (sweep,) = (root / "prune").iterdir()
    assert result.status == 130
    assert result.err.endswith(f"continue with: tinyfusion prune resume={sweep}\n")


def test_a_second_interrupt_from_the_keyboard_ends_the_process(tf, root, monkeypatch) -> None:
    step = DenoiserTraining.training_step

    def impatient(self, batch, batch_idx):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DenoiserTraining, "training_step", impatient)
    torch.set_num_threads(1)
    process = multiprocessing.get_context("fork").Process(target=tf, args=("prune",))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGINT
    assert not list(root.rglob("resume.ckpt"))


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
