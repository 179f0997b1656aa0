"""Which processes a command is told to be one of: refused, ignored and said before any work."""

from __future__ import annotations

import os

import pytest
from lightning.pytorch.utilities import rank_zero_only

from tests.cli.conftest import SMALL, TWO
from tinyfusion.runtime import report as report_module
from tinyfusion.settings.commands import COMMANDS

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
TASKS = {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
THREE = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=3", "trainer.precision=32-true")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_more_processes_than_devices(
    tf, root, monkeypatch, command: str
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    # One of them has an explicit count of its own.
    asked = ("workers=1",) if command == "encode" else (f"hydra.run.dir={root / 'run'}",)
    result = tf(command, *asked, small=command in SMALL)
    assert result.status == 2 and result.out == ""
    assert len(result.err.splitlines()) == 1
    assert "1 process(es), but 2 were started" in result.err
    assert not root.exists()


@pytest.mark.parametrize(
    ("environment", "overrides", "said"),
    [
        (TORCHRUN, [], "trainer.devices=1 trainer.num_nodes=1: 1 process(es), but 2 were started"),
        (TORCHRUN, ["dry_run=true"], "1 process(es), but 2 were started"),
        (TASKS, [], "1 process(es), but 4 were started, as SLURM_PROCID"),
        (TORCHRUN, THREE, "3 process(es), but 2 were started"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, [], "but 2 were started"),
        ({"RANK": "1"}, THREE, "RANK=1 may be meant to number them"),
        ({"LOCAL_RANK": "x", "NODE_RANK": "1"}, THREE, "LOCAL_RANK=x NODE_RANK=1 may be meant"),
        (TORCHRUN, ["trainer=ddp", *TWO], "hydra.run.dir=FOLDER"),
        (TORCHRUN, ["-m", "seed=0,1"], "a sweep can't be run by ranks"),
        ({"NODE_RANK": "0", "MASTER_ADDR": "a"}, ["-m", "seed=0,1"], "a sweep can't be run"),
        ({}, ["trainer=ddp", "trainer.num_nodes=2", *TWO], "MASTER_ADDR, MASTER_PORT, NODE_RANK"),
        ({}, ["trainer=ddp", "trainer.accelerator=cpu"], "trainer.devices=-1 takes all GPUs"),
        ({}, ["trainer=fsdp", *TWO, "trainer.precision=16-mixed"], "valid: 32-true, bf16-mixed"),
        ({}, ["trainer.strategy=deepspeed"], "valid: auto, ddp, fsdp"),
    ],
)
def test_what_can_not_be_started(tf, root, monkeypatch, environment, overrides, said) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = tf("run", *overrides)
    assert result.status == 2 and said in result.err
    assert len(result.err.splitlines()) == 1
    assert not root.exists()


def test_a_resumed_run_is_asked_as_well(tf, only_run, monkeypatch) -> None:
    assert tf("prune", "pruner=random").status == 0
    folder = only_run("prune")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    result = tf("prune", f"resume={folder}", exact=True)
    assert result.status == 2 and "1 process(es), but 2 were started" in result.err
    for name in TORCHRUN:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RANK", "abc")
    result = tf("prune", f"resume={folder}", exact=True)
    assert result.status == 0 and "nothing to do" in result.out
    assert "RANK=abc ignored" in result.err


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "1"}, {"NODE_RANK": "1", "MASTER_ADDR": "a", "JSM_NAMESPACE_RANK": "x"}],
)
def test_what_is_left_over_makes_no_further_rank(tf, only_run, monkeypatch, environment) -> None:
    """It trains, logs and writes as the only process, under Lightning as well."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning reads the first of them
    result = tf("prune", "training.mask_learning.steps=1")
    assert result.status == 0 and "prune: learned keeps" in result.out
    (said,) = result.err.splitlines()
    assert said.startswith("tinyfusion: warning: ")
    assert all(f"{name}=" in said for name in environment if name != "MASTER_ADDR")
    folder = only_run("prune")
    assert len((folder / "prune/log/version_0/metrics.csv").read_text().splitlines()) == 2
    assert (folder / "finished.json").is_file()


def test_a_shell_within_a_step_is_one_process(tf, monkeypatch) -> None:
    for name, value in TASKS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_NAME", "zsh")
    for _ in range(2):  # each in a folder of its own
        result = tf("sample", "n=4")
        assert (result.status, result.err) == (0, "")


def test_one_of_the_ranks_that_fail_alike_says_so(on_ranks, monkeypatch, capfd) -> None:
    monkeypatch.setattr(report_module, "HOLD", 0.2)
    on_ranks(3, lambda: report_module.report(f"all of {os.environ['WORLD_SIZE']}"))
    on_ranks(2, lambda: report_module.report(f"only {os.environ['RANK']}"))
    said = sorted(line.rpartition(": ")[2] for line in capfd.readouterr().err.splitlines())
    assert said == ["all of 3", "only 0", "only 1"]
