"""The documentation as a site: pages are found, and lists and links come out as they should.

`make check` builds all of it strictly; here the parts that are ours are looked at.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")

ROOT = Path(__file__).resolve().parents[1]
HOOKS = runpy.run_path(str(ROOT / "docs/site/hooks.py"))


def shown(text: str) -> str:
    return HOOKS["on_page_markdown"](text, page=None, config=None, files=None)


def test_every_page_of_docs_is_in_the_navigation() -> None:
    navigation = (ROOT / "docs/site/mkdocs.yml").read_text(encoding="utf-8")
    tutorials = [*ROOT.glob("docs/tutorials/*.md"), *ROOT.glob("docs/tutorials/*.ipynb")]
    for file in [*ROOT.glob("docs/*.md"), *tutorials]:
        assert f": {file.relative_to(ROOT / 'docs').as_posix()}\n" in navigation, file.name


def test_links_from_the_top_of_the_repository_lead_from_docs() -> None:
    text = "[a](docs/pruners.md#budgets) ![b](docs/demo.png) [c](https://x.y/docs/z) [d](#e)"
    assert HOOKS["_from_top"](text) == (
        "[a](pruners.md#budgets) ![b](demo.png) [c](https://x.y/docs/z) [d](#e)"
    )
    assert HOOKS["_from_top"]("[c](CHANGELOG.md)") == "[c](changelog.md)"


def test_lists_are_lists_to_python_markdown() -> None:
    assert shown("a line\n- one\n  more\n- two\n  - deep") == (
        "a line\n\n- one\n  more\n- two\n    - deep"
    )
    assert shown("```\na line\n- one\n```") == "```\na line\n- one\n```"
    assert shown("a line\n1. one\n2. two") == "a line\n\n1. one\n2. two"


def test_every_module_has_its_docstrings_on_one_page() -> None:
    pages = [HOOKS["_reference"](name) for name in HOOKS["_packages"]()]
    found = [line.removeprefix("::: ") for page in pages for line in page.splitlines()]
    for module in ("tinyfusion.decision", "tinyfusion.pruners.learned", "tinyfusion.conformance"):
        assert found.count(module) == 1


def test_the_gallery_shows_every_picture_once() -> None:
    gallery = HOOKS["_gallery"]()
    for name in ("demo.png", "architecture.png", "cost_growth.png"):
        assert gallery.count(f"({name})") == 1
