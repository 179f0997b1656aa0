"""Sweeps whose runs are processes of their own: what they do and what they say."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import tinyfusion

LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "hydra.launcher.timeout_min=5"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "+hydra.launcher.ray.init.num_cpus=2"),
}


@pytest.fixture
def launched(tf, root):
    """``launched("joblib", ...)``: a sweep of prunings through a launcher."""

    def run(launcher: str, *overrides: str):
        package, own = LAUNCHERS[launcher]
        pytest.importorskip(package, reason=f"the launcher {launcher} is not installed")
        chosen = [f"hydra/launcher={launcher}", own]
        return tf("prune", "-m", *chosen, f"hydra.sweep.dir={root / 'sweep'}", *overrides)

    return run


def finished(root):
    return sorted(file.parent for file in (root / "sweep").glob("*/finished.json"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_runs_failures_and_resumption(tf, launched, root, launcher: str) -> None:
    result = launched(launcher, "pruner=random", "scheme=1:2,1:3")
    assert result.status == 2
    refused, summary = result.err.strip().splitlines()[-2:]
    assert "scheme=1:3" in refused and "not a multiple of 3" in refused
    assert summary == "tinyfusion: 1 of 2 runs failed"
    assert "Traceback" not in result.err and "Error executing job" not in result.err
    (run,) = finished(root)
    assert OmegaConf.load(run / "config.yaml").scheme == "1:2"
    # The refused run left no folder, and no record of how it ended.
    assert {f.name for f in (root / "sweep").iterdir()} <= {"multirun.yaml", run.name, ".submitit"}

    before = (run / "finished.json").stat().st_mtime_ns
    again = tf("prune", f"resume={root / 'sweep'}", exact=True)
    assert again.status == 2 and "1 of 2 runs failed" in again.err
    assert "already holds a run" not in again.err
    assert finished(root) == [run] and (run / "finished.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_sweep_takes_its_runs_along(root, model) -> None:
    pytest.importorskip(LAUNCHERS["joblib"][0], reason="the launcher joblib is not installed")
    sweep = root / "sweep"
    line = ["prune", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1"]
    line += [f"checkpoint={model}", "training.mask_learning.steps=100000", "trainer.resume_every=5"]
    environment = dict(os.environ, PYTHONPATH=str(Path(tinyfusion.__file__).parents[1]))
    started = subprocess.Popen(
        [sys.executable, "-m", "tinyfusion.cli", *line, f"hydra.sweep.dir={sweep}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: len(list(sweep.glob("*/prune/resume.ckpt"))) == 2)
    finally:
        started.kill()
        started.wait()
    # Whoever works on a run holds its folder.
    until(lambda: all(is_free(file) for file in sweep.glob("*/config.yaml")))


def is_free(file: Path) -> bool:
    with open(file) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120.0
    while not reached():
        assert time.monotonic() < deadline, "it did not get there"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_several_devices_per_run(launched, root, launcher: str) -> None:
    two = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    result = launched(launcher, "trainer=ddp", *two, "trainer.num_workers=0", "seed=0,1")
    assert result.status == 0, result.err
    assert len(finished(root)) == 2
