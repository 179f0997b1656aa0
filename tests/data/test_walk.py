"""One walk over folders: the same pictures for training, encoding and scoring."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyfusion.data.image_sets import pictures_in
from tinyfusion.data.imagefolder import ImageFolder
from tinyfusion.data.walk import LeftOut, find_pictures
from tinyfusion.errors import InputError


def picture(file: Path, value: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three pictures."""
    for number in range(6):
        picture(tmp_path / "root" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "root"


def counts(root: Path) -> tuple[int, int]:
    """Pictures for training and for scoring."""
    return len(ImageFolder(root, 8, probe=False).files), len(pictures_in(root, None, "images"))


def walked(root: Path) -> tuple[list[str], str]:
    left = LeftOut()
    (files,) = find_pictures(str(root), [str(root)], left)
    return [os.path.relpath(file, root) for file in files], str(left)


@pytest.mark.parametrize(
    "name",
    [
        "a/.ipynb_checkpoints/0-checkpoint.png",
        "a/@eaDir/0.png/SYNOPHOTO_THUMB.jpg",
        "a/@Recycle/0.png",
        "__MACOSX/a/0.png",
        "a/deep/#recycle/0.png",
        "b/._1.png",
        ".cache/c/0.png",
    ],
)
def test_hidden_names_and_folders_of_tools_are_left_out(root: Path, name: str) -> None:
    picture(root / name)
    assert counts(root) == (6, 6)
    files, left = walked(root)
    assert len(files) == 6 and left.startswith("1 hidden name(s) or tools' own folder(s) (")


def test_folders_are_never_pictures_and_case_does_not_matter(root: Path) -> None:
    picture(root / "a" / "mask.png" / "x.PNG")
    picture(root / "b" / "deep" / "er" / "y.JPEG")
    assert counts(root) == (8, 8)


def test_each_folder_is_read_once_where_it_lies(root: Path, tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "x.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")  # a class may be a link
    picture(root / "b" / "deep" / "z.png")
    (root / "a" / "again").symlink_to(root / "b")  # b keeps its own pictures
    (root / "a" / "deep").symlink_to(root / "b" / "deep")
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "b" / "up").symlink_to(root)
    (root / "b" / "further").symlink_to(tmp_path)
    (root / "a" / "x.png").symlink_to(root / "a" / "0.png")  # a link to a file is one more
    (root / "a" / "y.png").symlink_to(root / "a" / "0.png")
    assert counts(root) == (10, 10)
    source = ImageFolder(root, 8)
    assert source.classes == ["a", "b", "c"] and source.labels.bincount().tolist() == [5, 4, 1]
    assert "5 link(s) to folders that are read already" in walked(root)[1]
    (tmp_path / "link").symlink_to(root)
    assert counts(tmp_path / "link") == (10, 10)


def test_order_does_not_depend_on_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(root / "a" / "deep" / "z.png")
    (root / "a" / "linked").symlink_to(root.parent)
    before = walked(root)[0]
    assert before == [
        "a/0.png",
        "a/2.png",
        "a/4.png",
        "a/deep/z.png",
        *(f"b/{n}.png" for n in (1, 3, 5)),
    ]
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert walked(root)[0] == before


def test_what_is_no_picture_is_named_and_counted(root: Path, caplog, monkeypatch) -> None:
    (root / "a" / "broken.png").symlink_to("nowhere.png")
    (root / "a" / "itself.png").symlink_to("itself.png")
    os.mkfifo(root / "b" / "pipe.png")
    (root / "b" / "notes.txt").touch()
    (root / "b" / "x.gif").touch()
    picture(root / "loose.png")
    monkeypatch.setattr("tinyfusion.notices.log.parent.propagate", True)
    assert counts(root) == (6, 7)
    # Of a logger that other tests have set up, a message may come twice.
    notes = dict.fromkeys(text for text in caplog.messages if text.startswith("note: "))
    training, scoring = notes
    for said in (training, scoring):
        assert "2 broken link(s) (a/broken.png, a/itself.png)" in said
        assert "1 special file(s) (b/pipe.png)" in said and ".gif 1" in said and ".txt 1" in said
    assert "1 picture(s) beside the class folders (loose.png)" in training
    assert "beside" not in scoring


def test_folders_that_can_not_be_read_are_named(root: Path, monkeypatch) -> None:
    picture(root / "a" / "shut" / "x.png")
    scandir = os.scandir

    def refusing(path: str):
        if os.path.basename(path) == "shut":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert counts(root) == (6, 6)
    assert walked(root)[1] == "1 folder(s) that can't be read, Permission denied (a/shut)"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "c").mkdir(), "class folder 'c' holds no images"),
        (lambda r: picture(r / "c" / ".x.png"), r"'c' holds no images.*1 hidden name.*c/\.x\.png"),
        (lambda r: (r / "c").symlink_to(r / "a"), "'c' holds no images.*read already .c."),
        (lambda r: (r / "c").symlink_to(r / "nowhere"), "'c' is a broken link; mend or remove it"),
    ],
)
def test_a_class_is_not_lost_in_silence(root: Path, spoil, message: str) -> None:
    spoil(root)
    with pytest.raises(InputError, match=message):
        ImageFolder(root, 8)
