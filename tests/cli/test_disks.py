"""Places that can't be written and disks that are full: a cause and a cure in one line."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_the_way(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")


@pytest.mark.parametrize(
    ("overrides", "prepare", "fragments"),
    [
        (["hydra.run.dir=F"], lambda: in_the_way(Path("F")), ["F: File exists", "in the way"]),
        (["hydra.run.dir=F/x"], lambda: in_the_way(Path("F")), ["hydra.run.dir=", "in the way"]),
        (["output_root=F"], lambda: in_the_way(Path("F")), ["output_root=", "F/prune/", "in the"]),
        (["-m", "hydra.sweep.dir=F"], lambda: in_the_way(Path("F")), ["hydra.sweep.dir=", "F: "]),
        (["hydra.run.dir=F"], lambda: os.symlink("nowhere/x", "F"), ["F: File exists"]),
        (["hydra.run.dir=F/x"], lambda: os.symlink("F", "F"), ["F/x: Too many levels", "circle"]),
        (["hydra.run.dir=" + "a" * 300], lambda: None, ["File name too long", "shorter name"]),
        (["hydra.run.dir=/proc/nope"], lambda: None, ["/proc/nope: No such file"]),
        (
            ["hydra.run.dir=F"],
            lambda: os.makedirs("F/config.yaml"),
            ["config.yaml: Is a directory"],
        ),
    ],
)
def test_a_folder_that_cannot_be_made(
    tf, tmp_path, monkeypatch, overrides, prepare, fragments
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare()
    before = sorted(tmp_path.rglob("*"))
    result = tf("prune", "pruner=random", *overrides)
    assert result.status == 2, result
    assert len(result.err.splitlines()) == 1 and result.err.startswith("tinyfusion: error: the run")
    for fragment in fragments:
        assert fragment in result.err, result.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("overrides", "size", "name"),
    [
        (["pruner=random"], 1000, "config.yaml"),
        (["pruner=random"], 20_000, "pruned/model.safetensors"),
        (["delta=full", "trainer.resume_every=2"], 60_000, "prune/resume.ckpt"),
    ],
)
def test_a_full_disk_is_named_and_the_run_resumed(tf, root, overrides, size, name) -> None:
    folder = root / "F"
    with files_of_at_most(size):
        result = tf("prune", *overrides, f"hydra.run.dir={folder}")
    assert result.status == (2 if name == "config.yaml" else 1), result
    (line,) = result.err.splitlines()
    assert f"{folder / name}: File too large; raise the limit" in line
    assert not list(root.rglob(".*"))
    if name == "config.yaml":
        assert not folder.exists()
        return
    assert f"prune stopped; continue with resume={folder}" in result.out
    assert tf("prune", f"resume={folder}", exact=True).status == 0


def test_a_full_disk_at_the_log_of_numbers_names_the_folder(tf, only_run) -> None:
    fast = ("trainer.log_every=1", "training.mask_learning.steps=60", "callbacks=none")
    with files_of_at_most(6000):
        result = tf("prune", *fast, "trainer.progress=false", "training.mask_learning.batch_size=1")
    assert result.status == 1
    assert f"error: {only_run('prune')}: File too large" in result.err


def test_a_log_that_cannot_be_written_is_said_once(tf, root) -> None:
    (root / "F/run.log").mkdir(parents=True)
    result = tf("prune", "pruner=random", f"hydra.run.dir={root / 'F'}")
    assert result.status == 0
    assert result.err.splitlines() == [
        f"tinyfusion: the log is lost: {root / 'F/run.log'}: Is a directory; a folder is in the "
        "way: remove it or choose another place"
    ]


def test_a_cache_that_cannot_be_written_costs_no_result(tf, root, only_run) -> None:
    in_the_way(root / "cache")
    result = tf("evaluate")
    assert result.status == 0 and result.err == ""
    assert (only_run("evaluate") / "metrics.json").is_file()
    said = f"not kept for further runs: {root / 'cache'}: File exists"
    assert f"note: {said}" in result.out and f"\n  {said}" in result.out


def test_a_full_standard_output_fails_no_run(tf, root, monkeypatch) -> None:
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        result = tf("prune", "pruner=random", f"hydra.run.dir={root / 'F'}")
    assert result.status == 0 and (root / "F/finished.json").is_file()
    assert result.err == (
        "tinyfusion: standard output can't be written: No space left on device; make room; the "
        f"results are in {root / 'F'}\n"
    )


def test_resume_points_are_written_beside_their_target_only(tf, only_run, monkeypatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("mkstemp", "mkdtemp", "TemporaryFile", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, name, refused)
    seen: list[Path] = []
    monkeypatch.setattr("os.replace", _noting(os.replace, seen))
    assert tf("prune", "trainer.resume_every=2").status == 0
    folder = only_run("prune") / "prune"
    written = [file for file in seen if file.name.startswith(".resume.")]
    assert written and all(file.parent == folder for file in written)


def _noting(replace, seen):
    def noted(source, target):
        seen.append(Path(source))
        replace(source, target)

    return noted


def test_a_resume_point_that_is_damaged_is_named(tf, only_run, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tinyfusion.commands.prune.forget", lambda folder: None)
        patch.setattr("tinyfusion.commands.prune.write_pruned", _stop)
        with pytest.raises(_Stop):
            tf("prune", "trainer.resume_every=2")
    folder = only_run("prune")
    (folder / "decision.json").unlink()
    (folder / "prune/resume.ckpt").write_bytes(b"half a file")
    result = tf("prune", f"resume={folder}", exact=True)
    assert result.status == 2 and f"{folder / 'prune/resume.ckpt'}: not a readable" in result.err


class _Stop(BaseException):
    """Ends a run on the spot, as a kill would."""


def _stop(*_: object) -> None:
    raise _Stop
