"""Digests of the code change with the code that a result comes from, and with no other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinyfusion
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.sit import SiT
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.version import code_digest, modules_of

DIGEST = """
import sys
sys.path.insert(0, sys.argv[1])
from tinyfusion.version import __file__, code_digest
assert __file__.startswith(sys.argv[1])
print(code_digest(*sys.argv[2:]))
"""
MODULES = ("tinyfusion.metrics.evaluation", "tinyfusion.samplers.ddim")


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """A copy of the package's code, to be altered."""
    folder = tmp_path_factory.mktemp("copy")
    only_code = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.npz")
    shutil.copytree(Path(tinyfusion.__file__).parent, folder / "tinyfusion", ignore=only_code)
    return folder


def digest_in(folder: Path, *modules: str) -> str:
    run = subprocess.run(
        [sys.executable, "-S", "-c", DIGEST, str(folder), *(modules or MODULES)],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


@pytest.mark.parametrize(
    ("altered", "matters"),
    [
        ("samplers/ddim.py", True),
        ("metrics/fidelity.py", True),
        ("metrics/inception.py", True),
        ("samplers/generate.py", True),
        ("seeding.py", True),  # imported by what is imported
        ("samplers/ode.py", False),  # another sampler
        ("checkpoints/card.py", False),
        ("commands/evaluate.py", False),
        ("figures/table.py", False),
        ("__init__.py", False),
    ],
)
def test_code_that_a_result_comes_from_changes_its_digest(copied, altered, matters) -> None:
    before = digest_in(copied)
    file = copied / "tinyfusion" / altered
    text = file.read_text()
    try:
        file.write_text(f"{text}\n_changed = True\n")
        assert (digest_in(copied) != before) is matters
    finally:
        file.write_text(text)
    assert digest_in(copied) == before


def test_the_copy_and_the_package_agree(copied) -> None:
    assert digest_in(copied) == code_digest(*MODULES)
    assert code_digest(*MODULES) == code_digest(*reversed(MODULES)) != code_digest(MODULES[0])


def test_imports_for_types_alone_do_not_count(copied) -> None:
    package = copied / "tinyfusion"
    (package / "leaf.py").write_text("x = 1")
    (package / "user.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from tinyfusion import leaf\n"
        "def f():\n    from tinyfusion.stem import x\n"
    )
    (package / "stem.py").write_text("x = 2")
    before = digest_in(copied, "tinyfusion.user")
    (package / "leaf.py").write_text("x = 3")
    assert digest_in(copied, "tinyfusion.user") == before
    (package / "stem.py").write_text("x = 3")
    assert digest_in(copied, "tinyfusion.user") != before


def test_modules_of_objects_hold_those_of_their_bases(tmp_path, monkeypatch) -> None:
    found = modules_of(SiT, None)
    assert {"tinyfusion.backbones.sit", "tinyfusion.backbones.dit"} <= set(found)
    assert "tinyfusion.backbones.mar" in modules_of(MAR, Evaluation)
    (tmp_path / "own_sampler.py").write_text("class Own:\n    steps = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_sampler

    assert modules_of(own_sampler.Own()) == ("own_sampler",)
    before = code_digest("own_sampler")
    (tmp_path / "own_sampler.py").write_text("class Own:\n    steps = 4\n")
    code_digest.cache_clear()
    assert code_digest("own_sampler") != before
