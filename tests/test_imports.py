"""The architecture: imports go down one order, and the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tinyfusion

ROOT = Path(tinyfusion.__file__).parent

# A package or top module may import itself and what stands before it. Values and files come
# first, then what a model is and does, then how it is chosen and trained, then the commands.
ORDER = [
    "version",
    "errors",
    "ranks",
    "assets",
    "pixels",
    "quiet",
    "files",
    "seeding",
    "conditioning",
    "states",
    "units",
    "scheme",
    "changes",
    "decision_files",
    "decision",
    "backbones",
    "checkpoints",
    "autoencoder",
    "processes",
    "samplers",
    "data",
    "gating",
    "surgery",
    "conformance",
    "recovery",
    "metrics",
    "figures",
    "training",
    "tracking",
    "callbacks",
    "pruners",
    "pipeline",
    "settings",
    "runtime",
    "commands",
    "studies",
    "tools",
    "cli",
]


def modules() -> dict[str, Path]:
    """Every module by dotted name without the leading ``tinyfusion.``; the root is left out."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from tinyfusion.x import y` may name a module y.
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(name if name.removeprefix("tinyfusion.") in MODULES else node.module)
    return {name.removeprefix("tinyfusion.") for name in names if name.startswith("tinyfusion.")}


def test_every_module_has_a_place_in_the_order() -> None:
    assert {name.split(".")[0] for name in MODULES} == set(ORDER)


@pytest.mark.parametrize("name", list(MODULES))
def test_imports_go_down(name: str) -> None:
    allowed = ORDER[: ORDER.index(name.split(".")[0]) + 1]
    upward = {other for other in imported(MODULES[name]) if other.split(".")[0] not in allowed}
    assert not upward, f"{name} must not import {sorted(upward)}"


def test_modules_form_no_cycle() -> None:
    TopologicalSorter({name: imported(path) for name, path in MODULES.items()}).prepare()


@pytest.mark.parametrize("module", ["tinyfusion", "tinyfusion.cli"])
def test_starts_without_the_heavy_libraries(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    environment = {"PYTHONPATH": str(ROOT.parent), "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    loaded = set(run.stdout.split())
    assert module in loaded
    heavy = {"torch", "lightning", "hydra", "omegaconf", "numpy", "matplotlib", "peft", "wandb"}
    assert not heavy & loaded


def test_every_public_name_can_be_loaded() -> None:
    for name in tinyfusion.__all__:
        assert getattr(tinyfusion, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tinyfusion.nothing
