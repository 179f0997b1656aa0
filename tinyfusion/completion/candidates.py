"""What a command line can go on with: commands, keys, choices and files.

Answers come from the text of the configuration files and from dataclasses. Hydra's own completion
would compose a configuration at every press of the key, which takes over a second; and nothing of
what it offers knows our commands and tools. Nothing in this file imports torch or Hydra.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tinyfusion.completion.written_tree import chosen_groups, first_comment, written_tree
from tinyfusion.settings.commands import COMMANDS, GROUPS, NESTED, SUMMARIES, VALUES
from tinyfusion.settings.overview import choices
from tinyfusion.settings.paths import holds_path
from tinyfusion.training.settings import PRECISIONS


class Candidate(NamedTuple):
    """One way to go on.

    Attributes:
        text: the whole word, without any quoting.
        says: what it means, in a few words.
        goes_on: the word is not at its end yet, as after ``=`` or the name of a folder.
    """

    text: str
    says: str = ""
    goes_on: bool = False


FLAGS = {
    "--help": "keys, choices and examples",
    "--multirun": "a sweep: one run for each of several values",
    "--config-dir": "folder of your own configuration files",
    "--cfg": "print the configuration instead of running",
    "--info": "what Hydra found where",
}
FLAG_VALUES = {"--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all")}
CONFIG_DIR = ("--config-dir", "-cd")

PACKAGED = {"digits": "packaged DiT", "sit_digits": "packaged SiT", "mar_digits": "packaged MAR"}
_MODELS = ("checkpoint", "teacher.path", "models", "iterative.previous")

WORDS: dict[str, Sequence[str]] = {
    "units": ("blocks", "branches"),
    "start": ("kept", "averaged", "fresh"),
    "class_balance": ("random", "balanced"),
    "format": ("png", "npz"),
    "scheme": ("1:2", "2:4", "7:14", "even", "null"),
    "trainer.accelerator": ("cpu", "gpu", "auto"),
    "trainer.precision": PRECISIONS,
    "trainer.strategy": ("auto", "ddp", "fsdp"),
}
"""Values that are words, by key."""

_OPTION = re.compile(r"^\s+(?:-\w, )?(--[\w-]+)(?: \{(\S+)\}| [A-Z_]+)?(?:\s+(.*))?$", re.M)


def candidates(words: Sequence[str], tools: Mapping[str, str]) -> list[Candidate]:
    """What the last word of a command line can become.

    Args:
        words: what follows the program's name, without quoting; the last one ends at the cursor.
        tools: name and summary of commands that take files and options instead of keys.
    """
    *before, word = words
    found: Iterator[Candidate]
    if not before:
        found = _named({**SUMMARIES, **tools, "--help": "all commands", "--version": "version"})
    elif before[0] in COMMANDS:
        found = _of_command(before[0], before[1:], word)
    elif before[0] in tools:
        found = _of_tool(before[0], before[1:], word)
    else:
        return []
    return [candidate for candidate in found if candidate.text.startswith(word)]


def _named(texts: Mapping[str, str]) -> Iterator[Candidate]:
    return (Candidate(name, says) for name, says in texts.items())


# -- commands -----------------------------------------------------------------------------------


def _of_command(command: str, before: Sequence[str], word: str) -> Iterator[Candidate]:
    folders = [Path(folder) for flag, folder in pairwise(before) if flag in CONFIG_DIR]
    folders += [Path(t.partition("=")[2]) for t in before if t.startswith("--config-dir=")]
    last = before[-1] if before else ""
    if last in FLAG_VALUES:
        yield from (Candidate(value) for value in FLAG_VALUES[last])
    elif last in CONFIG_DIR:
        yield from _files(word, folders_only=True)
    elif word.startswith("-"):
        yield from _named(FLAGS)
    else:
        sign = re.match(r"[+~]*", word)
        assert sign is not None  # it matches nothing, too
        key, equals, value = word[sign.end() :].partition("=")
        given = [text for text in before if not text.startswith("-")]
        if equals:
            found = _values(command, key, value, given, folders)
        elif "." in key:
            found = _dotted(command, key, given, folders)
        else:
            found = _keys(command, folders)
        for one in found:
            text = f"{key}={one.text}" if equals else one.text
            yield one._replace(text=sign[0] + text)


def _keys(command: str, folders: Sequence[Path]) -> Iterator[Candidate]:
    """Top-level keys, each as ``key=`` and, where it has parts, as ``key.``."""
    tree = written_tree(command, chosen_groups(command, (), folders), folders)
    for group in chosen_groups(command, (), folders):
        if choices(group, folders):
            yield Candidate(f"{group}=", GROUPS.get(group, ""), goes_on=True)
    for key, says in VALUES.items():
        if key in COMMANDS[command].__dataclass_fields__ and key not in NESTED:
            yield Candidate(f"{key}=", says, goes_on=True)
    for key, node in tree.items():
        if isinstance(node, dict) and key in COMMANDS[command].__dataclass_fields__:
            yield Candidate(f"{key}.", "its parts", goes_on=True)
    yield Candidate("hydra.run.dir=", "the run's folder", goes_on=True)
    yield Candidate("hydra.sweep.dir=", "the sweep's folder", goes_on=True)
    yield Candidate("hydra/launcher=", "what starts the runs of a sweep", goes_on=True)


def _dotted(
    command: str, key: str, given: Sequence[str], folders: Sequence[Path]
) -> Iterator[Candidate]:
    """Keys inside a group or value, as its chosen files have them."""
    *path, _ = key.split(".")
    node: Any = written_tree(command, chosen_groups(command, given, folders), folders)
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict) or path[0] not in COMMANDS[command].__dataclass_fields__:
        return
    for name, value in node.items():
        if str(name).startswith("_"):
            continue
        whole = ".".join([*path, str(name)])
        if isinstance(value, dict):
            yield Candidate(f"{whole}.", "its parts", goes_on=True)
        else:
            shown = "null" if value is None else str(value)
            shown = shown.lower() if isinstance(value, bool) else shown
            yield Candidate(f"{whole}=", f"default {shown}", goes_on=True)


def _values(
    command: str, key: str, value: str, given: Sequence[str], folders: Sequence[Path]
) -> Iterator[Candidate]:
    """Values of a key; of several (``a,b`` or ``[a,b]``) the last one is completed."""
    done = re.match(r"(?s).*[\[,]|", value)
    assert done is not None
    start, last = done[0], value[done.end() :]
    found: list[Candidate] = []
    if key in chosen_groups(command, (), folders):
        names = {name: first_comment(key, name, folders) for name in choices(key, folders)}
        found = list(_named(names))
    elif key in WORDS:
        found = [Candidate(word) for word in WORDS[key]]
    elif holds_path(key) or "/" in last or last.startswith("~"):
        if key in _MODELS:
            found = list(_named(PACKAGED))
        if key == "models":
            found += [Candidate(name) for name in choices("backbone", folders)]
        found += _files(last)
    elif isinstance(_present(command, key, given, folders), bool):
        found = [Candidate("true"), Candidate("false")]
    for one in found:
        yield one._replace(text=start + one.text)


def _present(command: str, key: str, given: Sequence[str], folders: Sequence[Path]) -> Any:
    node: Any = written_tree(command, chosen_groups(command, given, folders), folders)
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


# -- tools and files ----------------------------------------------------------------------------


def _of_tool(tool: str, before: Sequence[str], word: str) -> Iterator[Candidate]:
    """Options of a tool, read from its help; the choices of a group of its name; and files."""
    values = {}
    for option, listed, says in _OPTION.findall(_help(tool)):
        values[option] = listed.split(",") if listed else []
        if word.startswith("-"):
            yield Candidate(option, says)
    last = before[-1] if before else ""
    if values.get(last):
        yield from (Candidate(value) for value in values[last])
    elif not word.startswith("-"):
        names = choices(tool)
        yield from (Candidate(name, first_comment(tool, name)) for name in names)
        yield from _files(word)


def _help(tool: str) -> str:
    """What a tool prints of itself: tools need no other way to list what they take."""
    module = importlib.import_module(f"tinyfusion.tools.{tool.replace('-', '_')}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        module.main(["--help"])
    return printed.getvalue()


def _files(word: str, folders_only: bool = False) -> Iterator[Candidate]:
    """Files and folders whose path begins with a word."""
    head, _, name = word.rpartition("/")
    shown = word[: len(word) - len(name)]
    folder = os.path.expanduser(head or shown or ".")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") and not name.startswith("."):
            continue
        if entry.is_dir():
            yield Candidate(f"{shown}{entry.name}/", "folder", goes_on=True)
        elif not folders_only:
            yield Candidate(f"{shown}{entry.name}", "file")
