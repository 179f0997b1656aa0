"""Runs on several devices: one process for each, one folder, one report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file
from torch.testing import assert_close

import tinyfusion
from tests.cli.conftest import SMALL
from tinyfusion.decision import Decision
from tinyfusion.runtime import report as report_module
from tinyfusion.settings.commands import COMMANDS

TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
TWO = (*TWO, "trainer.num_workers=0")
PATIENCE = 120.0
slow = pytest.mark.slow


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


@pytest.fixture
def command(root: Path, model: Path) -> Callable[..., subprocess.Popen]:
    """``command("run", "seed=1")``: a small command started in a process of its own."""
    environment = dict(os.environ, PYTHONPATH=str(Path(tinyfusion.__file__).parents[1]))
    environment.setdefault("OMP_NUM_THREADS", "1")
    fixed = [f"output_root={root}", f"checkpoint={model}", "trainer.threads=1"]
    fixed += ["sampler=ddpm_20", "sampler.steps=2"]

    def start(
        name: str,
        *overrides: str,
        env: dict[str, str] | None = None,
        steps: int = 4,
        by: tuple[str, ...] = (),
    ) -> subprocess.Popen:
        whole = [*fixed, *(["evaluation=none"] if name == "run" else [])]
        for phase in ("mask_learning", "recovery"):
            whole += [f"training.{phase}.{key}" for key in (f"steps={steps}", "batch_size=8")]
        if overrides[0].startswith("resume="):
            whole = []
        return subprocess.Popen(
            [sys.executable, *by, "-m", "tinyfusion.cli", name, *whole, *overrides],
            env=environment | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Else ignored where the tests themselves run in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return start


def wait_for(file: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{file} was not written"
        time.sleep(0.02)


def assert_same_run(first: Path, second: Path) -> None:
    decisions = [Decision.load(folder / "decision.json") for folder in (first, second)]
    assert decisions[0].kept == decisions[1].kept
    for name in ("recovered", "recovered_live"):
        one, two = (load_file(f / name / "model.safetensors") for f in (first, second))
        assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.fixture(params=["ranks", pytest.param("command", marks=slow)])
def prune_on_two(request, tf, command, on_ranks) -> Callable[..., tuple[int, str, str]]:
    """Prune on two devices, by ranks that stand ready or by a command that starts them."""

    def by_ranks(*overrides: str) -> tuple[int, str, str]:
        first, second = on_ranks(2, lambda: tuple(tf("prune", *overrides)))
        return max(first[0], second[0]), first[1] + second[1], first[2] + second[2]

    def by_command(*overrides: str) -> tuple[int, str, str]:
        started = command("prune", *overrides)
        out, err = started.communicate(timeout=PATIENCE)
        return started.returncode, out, err

    return by_ranks if request.param == "ranks" else by_command


def test_prune_on_two_devices(tf, prune_on_two, root) -> None:
    one, two = root / "one", root / "two"
    assert tf("prune", f"hydra.run.dir={one}").status == 0
    status, out, err = prune_on_two("trainer=ddp", *TWO, f"hydra.run.dir={two}")
    assert (status, err) == (0, "")
    assert out.count("prune: learned keeps") == 1 and "2 device(s) x" in out
    assert Decision.load(one / "decision.json").kept == Decision.load(two / "decision.json").kept
    # One folder, whose files are those of a run on one device.
    assert {f.relative_to(one) for f in one.rglob("*")} == {
        f.relative_to(two) for f in two.rglob("*")
    }


@slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_run_on_two_devices_killed_and_resumed(tf, command, root, strategy: str) -> None:
    one, two = root / "one", root / "two"
    same = ["evaluation=none", "sampler=ddpm_20", "sampler.steps=2", f"hydra.run.dir={one}"]
    for phase in ("mask_learning", "recovery"):
        same += [f"training.{phase}.{key}" for key in ("steps=60", "batch_size=8")]
    assert tf("run", *same, small=False).status == 0
    started = command(
        "run", f"trainer={strategy}", *TWO, "trainer.resume_every=5", f"hydra.run.dir={two}",
        steps=60,
    )  # fmt: skip
    wait_for(two / "prune/resume.ckpt", started)
    started.kill()
    started.wait()
    # The ranks end with the process that started them; until then they hold the folder.
    deadline = time.monotonic() + PATIENCE
    while True:
        resumed = command("run", f"resume={two}")
        out, err = resumed.communicate(timeout=PATIENCE)
        if "another process is working" not in err or time.monotonic() > deadline:
            break
    assert resumed.returncode == 0, err
    assert "resumed from" in out and out.count("learned keeps") == 1
    assert_same_run(one, two)
    assert tf("run", f"resume={two}", exact=True).out.count("nothing to do") == 1


@slow
def test_an_interrupt_reaches_the_ranks(command, root) -> None:
    folder = root / "run"
    started = command(
        "run", "trainer=ddp", *TWO, "trainer.resume_every=5", f"hydra.run.dir={folder}", steps=2000
    )
    wait_for(folder / "prune/resume.ckpt", started)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=PATIENCE)
    assert started.returncode == 130
    assert err.splitlines()[1:] == [
        f"tinyfusion: interrupted by SIGINT; continue with: tinyfusion run resume={folder}"
    ]
    assert "stopping after this step" in err and "stopped" not in out


@slow
def test_what_a_rank_refuses_leaves_no_folder(command, root) -> None:
    refused = command("run", "trainer=ddp", *TWO, "training.recovery.batch_size=7")
    _, err = refused.communicate(timeout=PATIENCE)
    assert refused.returncode == 2
    assert len(err.splitlines()) == 1 and "batch_size=7" in err and "2 devices" in err
    assert not [f for f in root.rglob("*") if f.is_file()]


@slow
def test_a_rank_that_dies_ends_the_run_in_one_line(command, root, tmp_path) -> None:
    (tmp_path / "dying.py").write_text(
        "import os\n"
        "class Dying:\n"
        "    def choose(self, context):\n"
        "        if os.environ['RANK'] == '1': os._exit(3)\n"
        "        import time; time.sleep(600)\n"
    )
    (tmp_path / "conf/pruner").mkdir(parents=True)
    (tmp_path / "conf/pruner/dying.yaml").write_text("_target_: dying.Dying\n")
    path = os.pathsep.join([str(tmp_path), str(Path(tinyfusion.__file__).parents[1])])
    flags = ["--config-dir", str(tmp_path / "conf"), "pruner=dying", "scheme=null", "keep=2"]
    started = command("run", "trainer=ddp", *TWO, *flags, env={"PYTHONPATH": path})
    _, err = started.communicate(timeout=PATIENCE)
    assert started.returncode == 1
    last = err.strip().splitlines()[-1]
    assert "rank 1 of 2 ended with exit status 3" in last and "resume=" in last


@slow
def test_a_sweep_of_runs_on_two_devices(command, root) -> None:
    started = command("prune", "-m", "trainer=ddp", *TWO, "training.mask_learning.batch_size=8,7")
    _, err = started.communicate(timeout=PATIENCE)
    assert started.returncode == 2
    refused, summary = err.splitlines()
    assert "batch_size=7 can't be shared" in refused
    assert summary == "tinyfusion: 1 of 2 runs failed"
    (sweep,) = (root / "prune").iterdir()
    assert len([f for f in sweep.iterdir() if f.is_dir()]) == 1
    assert len(list(sweep.glob("*/finished.json"))) == 1


@slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_started_by_torchrun(command, root, strategy: str) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    folder = root / "run"
    started = command("run", f"trainer={strategy}", *TWO, f"hydra.run.dir={folder}", by=torchrun)
    out, err = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, err
    assert out.count("learned keeps") == 1
    assert (folder / "finished.json").is_file()


@slow
def test_two_machines_and_srun(command, root) -> None:
    """Two "machines" of one device each, then two tasks of a SLURM step; here as environment."""
    folder = root / "nodes"
    one = ("trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true")
    one = (*one, "trainer.num_workers=0")
    nodes = [
        command(
            "run", "trainer=ddp", *one, "trainer.num_nodes=2", f"hydra.run.dir={folder}",
            env={"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29518", "NODE_RANK": number},
        )
        for number in "01"
    ]  # fmt: skip
    results = [node.communicate(timeout=PATIENCE) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], results
    assert results[1] == ("", "") and "learned keeps" in results[0][0]

    step = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "47", "SLURM_STEP_ID": "3", "SLURM_NODEID": "0"}
    step |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "t", "SLURM_NODELIST": "127.0.0.1"}
    tasks = [
        command(
            "run", "trainer=fsdp", *TWO,
            env=step | {"SLURM_PROCID": number, "SLURM_LOCALID": number},
        )
        for number in "01"
    ]  # fmt: skip
    results = [task.communicate(timeout=PATIENCE) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], results
    assert results[1][0] == "" and "learned keeps" in results[0][0]
    assert [f.name for f in (root / "run").iterdir()] == ["slurm-47.3"]
    kept = [
        json.loads((f / "decision.json").read_text())["kept"]
        for f in (folder, root / "run/slurm-47.3")
    ]
    assert kept[0] == kept[1]
