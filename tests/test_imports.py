"""The architecture: imports go down one order, and contracts know no concrete classes."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import tinyfusion
from tinyfusion.backbones.presets import FAMILIES

ROOT = Path(tinyfusion.__file__).parent

# A package or top module may import itself and what stands before it. Values and files come
# first, then what a model is and does, then how it is chosen and trained, then the commands.
ORDER = [
    "version",
    "errors",
    "text",
    "progress",
    "ranks",
    "processors",
    "interrupts",
    "notices",
    "group",
    "assets",
    "pixels",
    "quiet",
    "files",
    "seeding",
    "conditioning",
    "states",
    "units",
    "scheme",
    "budget",
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
    "report",
    "studies",
    "tools",
    "completion",
    "cli",
    "__main__",
]


SCRIPT = runpy.run_path(str(ROOT.parent / "scripts" / "architecture.py"))
MODULES: dict[str, Path] = SCRIPT["modules"]()


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, also inside functions."""
    return SCRIPT["imported"](path, MODULES)


def test_the_list_of_files_in_the_documentation_is_current() -> None:
    text = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, heights = SCRIPT["layers"](MODULES)
    listed = SCRIPT["updated"](text, SCRIPT["listing"](MODULES, heights))
    assert text == listed, "python scripts/architecture.py writes it anew"


def test_every_module_has_a_place_in_the_order() -> None:
    assert {name.split(".")[0] for name in MODULES} == set(ORDER)


def test_imports_go_down() -> None:
    at = {name: ORDER.index(name.split(".")[0]) for name in MODULES}
    upward = {
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in imported(path)
        if at[other] > at[name]
    }
    assert not upward


def test_modules_form_no_cycle() -> None:
    TopologicalSorter({name: imported(path) for name, path in MODULES.items()}).prepare()


def test_every_public_name_can_be_loaded() -> None:
    for name in tinyfusion.__all__:
        value = getattr(tinyfusion, name)
        assert value is not None
        assert isinstance(value, ModuleType) == (name == "recipes"), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tinyfusion.nothing


CONFIGURED = ("cli", "commands", "settings")
"""Who may see a configuration; all others are given objects."""


def test_no_configuration_outside_commands_and_settings() -> None:
    found: set[tuple[str, str]] = set()
    for module, path in MODULES.items():
        if module.split(".")[0] in CONFIGURED:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {(module, alias.name.split(".")[0]) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((module, str(node.module).split(".")[0]))
            elif isinstance(node, ast.arg):
                found.add((module, node.arg))
            elif isinstance(node, ast.Name):
                found.add((module, node.id))
    configuration = {"omegaconf", "hydra", "cfg", "config_node"}
    assert not {pair for pair in found if pair[1] in configuration}


# -- contracts and names ------------------------------------------------------------------------

CONTRACTS = sorted(
    name
    for name in MODULES
    if name.split(".")[-1] in {"contract", "conditioning", "states", "scheme", "decision"}
)
GROUPS = ("backbone", "process", "sampler", "pruner")


def configured() -> dict[str, str]:
    """Class by module, of all backbones, processes, samplers and pruners that can be chosen."""
    found = {kind.__module__: kind.__name__ for kind in FAMILIES.values()}
    for group in GROUPS:
        for file in (ROOT.parent / "conf" / group).glob("*.yaml"):
            for target in re.findall(r"^_target_: (tinyfusion\.\S+)", file.read_text(), re.M):
                module, _, name = target.rpartition(".")
                found[module] = name
    return {module.removeprefix("tinyfusion."): name for module, name in found.items()}


CONCRETE = configured()


def test_the_concrete_classes_are_found() -> None:
    assert {"backbones.mar", "processes.gaussian", "samplers.ode", "pruners.shortgpt"} <= set(
        CONCRETE
    )
    assert {"backbones.contract", "pruners.contract", "conditioning", "states"} <= set(CONTRACTS)


@pytest.mark.parametrize("name", CONTRACTS)
def test_contracts_import_no_concrete_class(name: str) -> None:
    reached, left = set(), [name]
    while left:
        new = imported(MODULES[left.pop()]) - reached
        reached |= new
        left += new & set(MODULES)
    assert not reached & {*CONCRETE, "backbones.presets"}


def compared(tree: ast.AST) -> Iterator[ast.AST]:
    """Whatever a module compares with, matches or asks the type by, and keys that it looks up."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from ast.walk(node)
        elif isinstance(node, ast.MatchValue):
            yield from ast.walk(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass"):
                yield from ast.walk(node.args[1])


def asked_for(source: str) -> set[str]:
    """Names of families, kinds of processes and concrete classes that a source text asks for."""
    kinds = {"diffusion", "interpolant", "masked"}
    words = {*FAMILIES, *kinds}
    classes = set(CONCRETE.values())
    found = set()
    for node in compared(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in words:
            found.add(node.value)
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            found |= {name} & classes
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("if net.process_kind != 'masked': pass", {"masked"}),
        ("x = kind in ('diffusion', 'interpolant')", {"diffusion", "interpolant"}),
        ("if type(net) is not DiT: pass", {"DiT"}),
        ("isinstance(net, (nn.Module, mar.MAR))", {"MAR"}),
        ("match family:\n    case 'sit': pass", {"sit"}),
        ("x = 'a dit'; y = FAMILIES['dit']; DiT()", set()),
    ],
)
def test_asking_for_a_name_is_noticed(source: str, expected: set[str]) -> None:
    assert asked_for(source) == expected


def test_nothing_depends_on_the_name_of_a_family() -> None:
    found = {name: asked_for(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    assert not {name: asked for name, asked in found.items() if asked}


def test_torch_load_is_called_in_one_place() -> None:
    """Files are untrusted: one function reads them, with protection."""
    ((name, call),) = (
        (name, node)
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    )
    assert name == "checkpoints.tensors"
    assert "weights_only=True" in ast.unparse(call)
