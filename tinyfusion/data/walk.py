"""Finding picture files in folders: one walk for training, encoding and scoring.

Hidden names and folders that tools keep for themselves are left out; links are followed, and
each real folder is read once. docs/images.md has the rules.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from tinyfusion.data.pictures import SUFFIXES

_TOOL_FOLDERS = frozenset(
    (
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@sharebin",
        "@tmp",
        "__macosx",
        "__pycache__",
        "lost+found",
        "system volume information",
    )
)
"""Folders in which file servers and tools keep previews and copies, in small letters."""

BROKEN_LINKS = "broken link(s)"

_NAMED = 3
"""So many names of each kind are given in a message."""


@dataclass
class LeftOut:
    """What a walk did not take, by reason.

    Attributes:
        names: paths inside the folder by reason, such as ``"broken link(s)"``.
        endings: how many files had which other ending.
    """

    names: dict[str, list[str]] = field(default_factory=dict)
    endings: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, name: str) -> None:
        """Note one."""
        self.names.setdefault(reason, []).append(name)

    def __bool__(self) -> bool:
        return bool(self.names or self.endings)

    def __str__(self) -> str:
        """All reasons with their counts and first names; empty if nothing was left out."""
        parts = []
        for reason, names in self.names.items():
            shown = [*sorted(names)[:_NAMED], *(["..."] if len(names) > _NAMED else [])]
            parts.append(f"{len(names):,} {reason} ({', '.join(shown)})")
        if self.endings:
            kinds = ", ".join(f"{ending} {n:,}" for ending, n in self.endings.most_common(_NAMED))
            parts.append(f"{self.endings.total():,} file(s) of other kinds ({kinds})")
        return ", ".join(parts)


def find_pictures(root: str, starts: Sequence[str], left: LeftOut) -> list[list[str]]:
    """The picture files below each of some folders, in the order of their folders and names.

    A folder that several paths lead to belongs to the one without links, else to the first.

    Args:
        root: the folder that the user named; links to it, or to a folder around it, lead back.
        starts: where to look: ``[root]``, or folders in it.
        left: is told what is left out.

    Returns:
        paths for each of ``starts``.
    """
    found: list[list[tuple[str, str]]] = [[] for _ in starts]
    here = os.path.realpath(root)
    seen: set[str] = set()
    real: deque[tuple[int, str]] = deque()
    linked: deque[tuple[int, str]] = deque()

    def enter(number: int, folder: str) -> None:
        (linked if folder != root and os.path.islink(folder) else real).append((number, folder))

    for number, start in enumerate(starts):
        enter(number, start)
    while real or linked:
        number, folder = (real or linked).popleft()
        place = os.path.realpath(folder)
        if place in seen or (folder != root and _holds(place, here)):
            left.add("link(s) to folders that are read already", os.path.relpath(folder, root))
            continue
        seen.add(place)
        folders, names = listed(folder, root, left)
        found[number] += [(folder, name) for name in names]
        for name in sorted(folders):
            enter(number, os.path.join(folder, name))
    return [[os.path.join(*pair) for pair in sorted(pairs)] for pairs in found]


def class_folders(root: str, left: LeftOut) -> list[str]:
    """The folders in ``root``, each of which stands for a class, in the order of their names.

    Args:
        root: the folder that the user named.
        left: is told what lies beside them.
    """
    folders, names = listed(root, root, left)
    for name in names:
        left.add("picture(s) beside the class folders", name)
    return [os.path.join(root, name) for name in sorted(folders)]


def _holds(folder: str, inner: str) -> bool:
    """Whether ``inner`` is the folder or lies in it; both are real paths."""
    return (inner + os.sep).startswith(folder.rstrip(os.sep) + os.sep)


def listed(
    folder: str, root: str, left: LeftOut, endings: Collection[str] = SUFFIXES
) -> tuple[list[str], list[str]]:
    """What a folder holds, in no order.

    Args:
        folder: the folder.
        root: the folder that the user named, for messages.
        left: is told what is left out.
        endings: of the wanted files, in small letters.

    Returns:
        names of the folders, and of the wanted files.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    kind = _kind(entry)
                except OSError:  # a link that leads to itself, or no right to look
                    kind = BROKEN_LINKS if entry.is_symlink() else "file(s) that can't be looked at"
                ending = os.path.splitext(entry.name)[1].lower()
                if kind == "folder":
                    folders.append(entry.name)
                elif kind == "file" and ending in endings:
                    files.append(entry.name)
                elif kind == "file":
                    left.endings[ending or "no ending"] += 1
                else:
                    left.add(kind, os.path.relpath(entry.path, root))
    except OSError as error:
        reason = f"folder(s) that can't be read, {error.strerror}"
        left.add(reason, os.path.relpath(folder, root))
    return folders, files


def _kind(entry: os.DirEntry[str]) -> str:
    """``folder``, ``file``, or why it is left out."""
    if entry.name.startswith(".") or entry.name.lower() in _TOOL_FOLDERS:
        return "hidden name(s) or tools' own folder(s)"
    if entry.is_dir():
        return "folder"
    if entry.is_file():
        return "file"
    return BROKEN_LINKS if entry.is_symlink() else "special file(s)"
