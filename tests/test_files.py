"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tinyfusion import files
from tinyfusion.errors import InputError
from tinyfusion.files import (
    read_json,
    replace_folder,
    restore_folder,
    sha256_of,
    write_atomic,
    write_json,
    write_text,
)


def test_writes_into_new_folders_and_keeps_the_suffix(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(path: Path) -> None:
        seen.append(path)
        path.write_text("x")

    target = tmp_path / "a" / "b.png"
    assert write_atomic(target, write) == target
    assert seen[0].suffix == ".png"
    assert seen[0] != target
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = write_text(tmp_path / "x.txt", "old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_writer_that_was_never_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x.txt", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == []


def test_files_get_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        paths = [
            write_text(tmp_path / "x.txt", "x"),
            # Some versions of safetensors make files that only the owner may read.
            write_atomic(
                tmp_path / "x.safetensors", lambda path: save_file({"x": torch.zeros(1)}, path)
            ),
        ]
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o640, 0o640]


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", {"a": [1, 2.5, None], "ü": "é"})
    assert read_json(path, "config") == {"a": [1, 2.5, None], "ü": "é"}
    with pytest.raises(InputError, match=r"config file '.*y\.json' does not exist"):
        read_json(tmp_path / "y.json", "config")
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="is not valid JSON"):
        read_json(path, "config")


def test_hash(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_that_is_replaced_is_never_lost(tmp_path: Path, monkeypatch) -> None:
    class Killed(BaseException):
        pass

    def finished(name: str, content: str) -> Path:
        return write_text(tmp_path / name / "file", content).parent

    target = tmp_path / "best"
    restore_folder(target)
    assert not list(tmp_path.iterdir())
    for last in range(1, 10):
        for folder in list(tmp_path.iterdir()):
            files.shutil.rmtree(folder)
        finished("best", "old")
        calls = 0

        def counted(operation):
            def run(*arguments, **options):
                nonlocal calls
                calls += 1
                if calls == last:  # noqa: B023 - called within this turn of the loop
                    raise Killed
                return operation(*arguments, **options)

            return run

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", counted(Path.rename))
            patched.setattr(files.shutil, "rmtree", counted(files.shutil.rmtree))
            try:
                replace_folder(finished(".best", "new"), target)
                break
            except Killed:
                pass
        restore_folder(target)
        assert read_text(target) in ("old", "new")
        # What is tried again succeeds, and leaves nothing beside it.
        assert read_text(replace_folder(finished(".best", "new"), target)) == "new"
        assert list(tmp_path.iterdir()) == [target]
    assert last > 3 and read_text(target) == "new"


def read_text(folder: Path) -> str:
    return (folder / "file").read_text()
