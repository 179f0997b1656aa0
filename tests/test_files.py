"""Files are whole or absent."""

from __future__ import annotations

import ast
import errno
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tinyfusion
from tinyfusion.errors import InputError
from tinyfusion.files import (
    clear_torn,
    read_json,
    restore_folder,
    sha256_of,
    target_of,
    write_atomic,
    write_bytes,
    write_folder_atomic,
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


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(9000)),
        lambda path: np.save(path.open("wb"), np.zeros(9000, np.uint8)),
        lambda path: torch.save(torch.zeros(9000), path),
        lambda path: torch.save(torch.zeros(9000), path.open("wb")),
        lambda path: save_file({"a": torch.zeros(9000)}, path),
        lambda path: Image.effect_noise((200, 200), 99.0).save(path, "png"),
        lambda path: np.savez(path.open("wb"), a=np.zeros(9000)),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of files that stay open, as they can't be closed
def test_a_full_disk_is_named_whatever_writes(tmp_path: Path, write) -> None:
    target = write_text(tmp_path / "x.npy", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_atomic(target, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(target))
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_what_is_no_fault_of_the_disk_is_raised_as_it_is(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        write_atomic(tmp_path / "x", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        write_folder_atomic(tmp_path / "y", fail)
    assert not list(tmp_path.iterdir())


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


def filled(content: str):
    def fill(folder: Path) -> None:
        write_text(folder / "a.txt", content)
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_text(content)

    return fill


def content_of(folder: Path) -> set[str]:
    return {file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "best"
    assert write_folder_atomic(target, filled("old")) == target
    (target / "further.txt").write_text("old")
    write_folder_atomic(target, filled("new"))
    assert content_of(target) == {"new"} and not (target / "further.txt").exists()
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_could_not_be_filled_leaves_what_was_there(tmp_path: Path) -> None:
    target = write_folder_atomic(tmp_path / "best", filled("old"))

    def fail(folder: Path) -> None:
        filled("half")(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder_atomic(target, fail)
    assert content_of(target) == {"old"} and list(tmp_path.iterdir()) == [target]


KILLED = """
import os, shutil, sys
from pathlib import Path
from tinyfusion import files

left = int(sys.argv[2])

def counted(call):
    def or_killed(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*args, **kwargs)
    return or_killed

for module, names in {os: ("replace", "mkdir", "unlink", "rmdir"), shutil: ("rmtree",)}.items():
    for name in names:
        setattr(module, name, counted(getattr(module, name)))
files.write_folder_atomic(Path(sys.argv[1]), lambda folder: files.write_text(folder / "a", "new"))
"""


def test_a_kill_at_any_step_leaves_the_old_or_the_new_folder(tmp_path: Path) -> None:
    seen, statuses = [], []
    for step in range(40):
        root = tmp_path / str(step)
        target = write_folder_atomic(root / "best", filled("old"))
        run = subprocess.run([sys.executable, "-c", KILLED, str(target), str(step)], check=False)
        statuses.append(run.returncode)
        between = not target.exists()
        clear_torn(root)
        assert list(root.iterdir()) == [target]
        (content,) = content_of(target)
        seen.append((between, content))
        if not run.returncode:
            break
    assert statuses[-1] == 0 and set(statuses[:-1]) == {9}
    # All three states came up: before the renames, between them, and behind them.
    assert {(False, "old"), (True, "old"), (False, "new")} == set(seen)
    assert len(seen) > 4


def test_the_next_replacement_mends_an_interrupted_one(tmp_path: Path) -> None:
    target = write_folder_atomic(tmp_path / "best", filled("old"))
    target.rename(tmp_path / ".best.former")
    write_folder_atomic(target, filled("new"))
    assert content_of(target) == {"new"} and list(tmp_path.iterdir()) == [target]
    target.rename(tmp_path / ".best.former")
    restore_folder(target)
    assert content_of(target) == {"new"} and list(tmp_path.iterdir()) == [target]
    restore_folder(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == [target]


def test_temporary_names_are_told_from_others(tmp_path: Path) -> None:
    names: list[str] = []
    for name in ("resume.ckpt", "shard-00000.images.npy", "none"):
        write_atomic(tmp_path / name, lambda path: names.append(path.name))
    write_folder_atomic(tmp_path / "best", lambda folder: names.append(folder.name))
    assert [target_of(name) for name in names] == [
        "resume.ckpt",
        "shard-00000.images.npy",
        "none",
        "best",
    ]
    for other in (".hydra", ".gitignore", "resume.ckpt", ".part-0-of-1.lock", ".a.12345.npy"):
        assert target_of(other) is None
    for name in (*names, ".gitignore"):
        (tmp_path / name).write_text("torn")
    (tmp_path / ".hydra").mkdir()
    clear_torn(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("resume.ckpt", "shard-00000.images.npy", "none", "best"),
        *(".gitignore", ".hydra"),
    }


def test_bytes(tmp_path: Path) -> None:
    assert write_bytes(tmp_path / "x", b"\0\1").read_bytes() == b"\0\1"


def test_nothing_else_renames_files() -> None:
    root = Path(tinyfusion.__file__).parent
    found = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                if (owner, node.func.attr) in {("os", "replace"), ("shutil", "move")} or (
                    node.func.attr in ("rename", "renames", "mkstemp", "mkdtemp")
                ):
                    found.add(str(file.relative_to(root)))
    assert found == {"files.py"}
