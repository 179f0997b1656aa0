"""Help and version: useful, and without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tinyfusion
from tinyfusion.cli import main
from tinyfusion.settings.commands import (
    COMMANDS,
    GROUPS,
    NESTED,
    OPTIONAL_GROUPS,
    PART_OF,
    VALUES,
    WHOLE,
)

HEAVY = {"torch", "lightning", "hydra", "omegaconf", "numpy", "matplotlib", "peft", "wandb", "rich"}


def run_apart(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a command line in a process of its own: what it did, and the modules it has loaded."""
    code = (
        "import sys\n"
        "from tinyfusion.cli import main\n"
        f"status = main({list(arguments)!r})\n"
        "print('MODULES', *sorted(sys.modules))\n"
        "raise SystemExit(status)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(tinyfusion.__file__).parents[1])},
    )
    return run, set(run.stdout.rpartition("MODULES")[2].split())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["convert", "--help"], []]
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    run, loaded = run_apart(*arguments)
    assert run.returncode == 0, run.stderr
    assert "tinyfusion.cli" in loaded and not HEAVY & loaded


def test_a_mistyped_key_is_named_before_torch_is_imported() -> None:
    run, loaded = run_apart("run", "schem=1:2")
    assert run.returncode == 2 and "did you mean 'scheme'?" in run.stderr
    assert "hydra" in loaded and not {"torch", "lightning", "matplotlib"} & loaded


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tinyfusion {tinyfusion.__version__}\n"


def test_general_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    for key in COMMANDS[command].__dataclass_fields__:
        if key in GROUPS:
            assert f"\n  {key} " in out
        elif key not in ("command", "guidance"):
            assert f"\n  {key}." in out if key in NESTED else f"\n  {key}=" in out
    assert "base" not in out.split() and "examples:" in out
    assert max(map(len, out.splitlines())) <= 100


def test_help_of_run_shows_choices_defaults_and_own_folders(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "pruner").mkdir()
    (tmp_path / "pruner/mine.yaml").write_text("_target_: my.Pruner\n")
    main(["run", "--help", "--config-dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert " learned*, lim, mine, " in " ".join(out.split())
    assert "finetune, kd, laptop_kd, masked_kd*, masked_kd_sit, repkd, repkd_sit" in out
    assert "units=blocks " in out and "seed=0 " in out


def test_every_key_is_described() -> None:
    keys = {key for schema in COMMANDS.values() for key in schema.__dataclass_fields__}
    described = (set(GROUPS) | set(VALUES)) - {*WHOLE, *PART_OF}
    assert keys - {"command", "guidance"} == described
    assert set(OPTIONAL_GROUPS) <= set(GROUPS)
