"""An installed wheel holds everything: modules, configuration and assets."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]


def test_every_package_is_listed() -> None:
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "tinyfusion").rglob("__init__.py")
    }
    assert set(settings()["packages"]) == found | {"tinyfusion.conf"}


def test_wheel_holds_configuration_and_assets(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("tinyfusion", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        (copy / name).write_text(source.read_text() if source.is_file() else "")
    build = (
        "from setuptools.build_meta import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "tinyfusion").rglob("*.py")}
    assets = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "tinyfusion/assets").rglob("*")
        if p.is_file() and p.suffix not in (".py", ".pyc")
    }
    configuration = {
        f"tinyfusion/conf/{p.relative_to(ROOT / 'conf').as_posix()}"
        for p in (ROOT / "conf").rglob("*.yaml")
    }
    assert assets and configuration
    files = {"tinyfusion/checkpoints/card.md", "tinyfusion/py.typed"}
    files |= {f"tinyfusion/report/page.{ending}" for ending in ("html", "css", "js")}
    assert modules | assets | configuration | files <= inside
    assert not [name for name in inside if name.startswith(("conf/", "tests/"))]
    # The unpacked wheel finds its own configuration.
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "from tinyfusion.settings.overview import conf_folder; print(conf_folder())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(run.stdout.strip()) == site / "tinyfusion" / "conf"


def test_source_distribution_holds_documentation_and_tests(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "build", "outputs", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=left_out)
    shutil.copy(ROOT / ".pre-commit-config.yaml", copy)
    build = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    wanted = {
        file.relative_to(copy).as_posix()
        for folder in ("tinyfusion", "conf", "docs", "tests", "scripts")
        for file in (copy / folder).rglob("*")
        if file.is_file()
    }
    assert len(wanted) > 500
    top = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile"}
    assert wanted | top | {"constraints.txt", ".pre-commit-config.yaml"} <= inside
    assert not [name for name in inside if name.endswith(".pyc")]


def test_constraints_pin_what_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["dev"], *extras["docs"]]
    names = {re.split(r"[\[<>=]", text)[0].lower() for text in asked} - {"tinyfusion"}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    assert names <= pinned
    # What has become a dependency can still be asked for by its former extra.
    assert extras["tensorboard"] == []


def test_pre_commit_configuration_is_valid() -> None:
    pytest.importorskip("pre_commit")
    command = [sys.executable, "-m", "pre_commit", "validate-config"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
