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
from safetensors.torch import load_file
from torch.testing import assert_close

import tinyfusion
from tests.cli.conftest import TWO
from tinyfusion.decision import Decision

PATIENCE = 120.0
slow = pytest.mark.slow


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
