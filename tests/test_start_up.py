"""The command line starts, and refuses, without loading what it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tinyfusion

ROOT = Path(tinyfusion.__file__).parent


HEAVIEST = {"lightning", "torchmetrics", "torchvision", "transformers", "torch_fidelity"}
HEAVIEST |= {"matplotlib", "scipy", "sklearn", "pandas", "wandb", "diffusers", "peft"}
HEAVY = {"torch", "hydra", "omegaconf", "numpy"} | HEAVIEST


def loaded_by(code: str, folder: Path) -> tuple[set[str], str]:
    """Modules that a new process has loaded after ``code``, and what it wrote to its stderr."""
    code = f"import sys; {code}; print('loaded', *sorted(sys.modules))"
    environment = {"PYTHONPATH": str(ROOT.parent), "PATH": "", "HOME": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env=environment, cwd=folder,
    )  # fmt: skip
    return set(run.stdout.rpartition("loaded ")[2].split()), run.stderr


@pytest.mark.parametrize("module", ["tinyfusion", "tinyfusion.cli"])
def test_starts_without_the_heavy_libraries(module: str, tmp_path: Path) -> None:
    loaded, _ = loaded_by(f"import {module}", tmp_path)
    assert module in loaded and not HEAVY & loaded


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_helps_without_the_heavy_libraries(flag: str, tmp_path: Path) -> None:
    loaded, _ = loaded_by(f"from tinyfusion.cli import main; main(['{flag}'])", tmp_path)
    assert "tinyfusion.cli" in loaded and not HEAVY & loaded


@pytest.mark.parametrize(
    ("wrong", "said", "needed"),
    [
        ("keeep=7", "unknown key 'keeep'", set()),
        ("pruner.nothing=1", "unknown key 'pruner.nothing'", set()),
        pytest.param(
            "+pruner.nothing=1", "unknown key 'pruner.nothing'", {"torch"}, marks=pytest.mark.slow
        ),
        ("keep=99", "keep=99 must be between 1 and 27", {"torch"}),
        pytest.param("scheme=2:x", "scheme='2:x' can't be read", {"torch"}, marks=pytest.mark.slow),
        ("checkpoint=nowhere", "checkpoint 'nowhere' does not exist", {"torch"}),
        pytest.param(
            "teacher.path=nowhere",
            "checkpoint 'nowhere' does not exist",
            {"torch"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "decision=nowhere",
            "decision file 'nowhere' does not exist",
            {"torch"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "trainer.strategy=none",
            "trainer.strategy=none is not known",
            {"torch"},
            marks=pytest.mark.slow,
        ),
        ("trainer=gpu", "trainer: accelerator=gpu, but there is no GPU", {"torch"}),
    ],
)
def test_refuses_without_the_heaviest_libraries(
    wrong: str, said: str, needed: set[str], tmp_path: Path
) -> None:
    code = f"from tinyfusion.cli import main; main(['run', 'experiment=demo', {wrong!r}])"
    loaded, report = loaded_by(code, tmp_path)
    assert f"tinyfusion: error: {said}" in report
    assert needed <= loaded and not HEAVIEST & loaded
    if not needed:
        assert "torch" not in loaded
    assert not list(tmp_path.rglob("config.yaml"))
