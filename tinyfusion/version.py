"""The package's version, and digests of the code that a result comes from.

The version stands for a release. What is kept for later runs is kept under a digest of the code
instead, so that a result of other code is never taken for one of this code.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_ROOT = Path(__file__).parent
_PACKAGE = __name__.partition(".")[0]


@cache
def code_digest(*modules: str) -> str:
    """Hex digest of the source text of some modules and of all that they import from this package.

    Computed once per process. It changes with every byte of that text and with nothing else.

    Args:
        modules: dotted names. Of modules from elsewhere, which must be imported, the own text
            counts, not what they import.
    """
    digest = hashlib.sha256()
    for name, text in sorted(_texts(modules).items()):
        digest.update(f"{name} {hashlib.sha256(text).hexdigest()}\n".encode())
    return digest.hexdigest()[:20]


def modules_of(*things: Any) -> tuple[str, ...]:
    """Names of the modules in which the classes of some objects are defined, sorted.

    Args:
        things: objects or classes; ``None`` is left out. Base classes count, too.
    """
    kinds = (thing if isinstance(thing, type) else type(thing) for thing in things)
    bases = (base for kind in kinds for base in kind.__mro__)
    return tuple(sorted({base.__module__ for base in bases} - {"builtins"}))


def _texts(modules: tuple[str, ...]) -> dict[str, bytes]:
    """Source text by module: the given ones and those of this package that they reach."""
    found: dict[str, bytes] = {}
    left = list(modules)
    while left:
        name = left.pop()
        if name in found:
            continue
        file = _file_of(name)
        found[name] = file.read_bytes() if file is not None and file.is_file() else b""
        if name.partition(".")[0] == _PACKAGE:
            left += _imported(ast.parse(found[name]))
    return found


def _file_of(name: str) -> Path | None:
    package, _, rest = name.partition(".")
    if package != _PACKAGE:
        file = getattr(sys.modules.get(name), "__file__", None)
        return None if file is None else Path(file)
    path = _ROOT.joinpath(*rest.split(".")) if rest else _ROOT
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(tree: ast.AST) -> Iterator[str]:
    """Modules of this package that a module imports anywhere, but for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _imported(ast.Module(node.orelse, []))
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            # `from package.x import y` may name a module y.
            longer = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if _is_module(n) else str(node.module) for n in longer]
        else:
            names = []
            yield from _imported(node)
        yield from (name for name in names if name.partition(".")[0] == _PACKAGE)


def _is_module(name: str) -> bool:
    file = _file_of(name) if name.partition(".")[0] == _PACKAGE else None
    return file is not None and file.is_file()


_PRESENTATION = (
    "callbacks", "cli", "commands", "completion", "errors", "figures", "interrupts", "notices",
    "progress", "quiet", "report", "runtime", "settings", "studies", "text", "tools", "tracking",
    "version",
)  # fmt: skip
"""Parts of the package that compute nothing: they compose, start, record and show."""

LIBRARIES = (
    "torch", "lightning", "numpy", "scipy", "scikit-learn", "diffusers", "peft", "torch-pruning",
    "torchmetrics", "torch-fidelity",
)  # fmt: skip
"""Libraries that results depend on."""


def imported_modules() -> dict[str, str]:
    """Versions of the modules of this package that this process has imported, by name.

    Left out are those that only show results. A version is a digest of the code without comments,
    docstrings and blank lines.
    """
    names = [name for name in sys.modules if name.startswith(f"{_PACKAGE}.")]
    counted = (name for name in names if name.split(".")[1] not in _PRESENTATION)
    return {name: _module_version(name) for name in sorted(counted)}


def changed_modules(versions: dict[str, str]) -> list[str]:
    """Those modules, of some versions by name, that are other ones now, or gone."""
    return [name for name, version in versions.items() if _module_version(name) != version]


def digest_of_versions(versions: dict[str, str]) -> str:
    """One digest of many versions."""
    text = "\n".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def libraries() -> dict[str, str]:
    """Versions of the libraries that results depend on, as far as they are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def _module_version(name: str) -> str:
    file = _file_of(name)
    if file is None or not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8")
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and not isinstance(node, ast.If | ast.For | ast.While | ast.With):
            for part in body:
                # A docstring, also one below an attribute.
                if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                    assert part.end_lineno is not None
                    left_out |= set(range(part.lineno, part.end_lineno + 1))
    lines = [
        line.split("  #")[0].rstrip()
        for number, line in enumerate(text.splitlines(), start=1)
        if number not in left_out and line.strip() and not line.lstrip().startswith("#")
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
