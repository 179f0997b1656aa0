"""What the site has beyond the pages in docs: README as its home, the API reference, a gallery."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page
from mkdocs.utils.templates import TemplateContext

import tinyfusion

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Pages of the site by the files at the top of the repository that they are."""

_LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)\s]+)\)")
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
TOP = "top-level modules"
_NUMBER = re.compile(r"(\d+)")
_ITEM = re.compile(r"( *)([-*]|\d+\.) ")


STYLE = """
.md-grid { max-width: 76rem; }
.md-typeset table:not([class]) th, .md-typeset table:not([class]) td {
  min-width: 0; padding: .5em .8em; font-variant-numeric: tabular-nums;
}
.md-typeset table:not([class]) td[style*="right"] { white-space: nowrap; }
"""
"""Room for wide tables, whose figures stay on one line."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API reference and published studies to the navigation."""
    assert config.nav is not None
    (results,) = [part["Results"] for part in config.nav if "Results" in part]
    results += [
        {_title(file).partition(":")[0]: f"results/{file.name}"}
        for file in _in_order((ROOT / "docs" / "results").glob("*.md"))
    ]
    reference = [{name: _reference_page(name)} for name in _packages()]
    config.nav.append({"API reference": [{"Python interface": "api/tinyfusion.md"}, *reference]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {page: _from_top((ROOT / name).read_text("utf-8")) for name, page in PAGES.items()}
    made["gallery.md"] = _gallery()
    made["api/tinyfusion.md"] = _public_names()
    made |= {_reference_page(name): _reference(name) for name in _packages()}
    made["site.css"] = STYLE
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_context(
    context: TemplateContext, page: Page, config: MkDocsConfig, nav: Navigation
) -> TemplateContext:
    """Leave the table of contents out where tables are wide and headings few."""
    if page.file.src_uri.startswith("results/"):
        page.meta["hide"] = ["toc"]
    return context


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lists as Python-Markdown wants them: four spaces for each level, a blank line before.

    The hosting page that shows the same files takes two spaces, and lists right after a line.
    """
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        fenced ^= line.lstrip().startswith("```")
        item = None if fenced else _ITEM.match(line)
        if item is not None:
            begins = bool(lines) and bool(lines[-1].strip()) and not _in_list(lines)
            lines += [""] if begins else []
            line = item[1] + line
        lines.append(line)
    return "\n".join(lines)


def _in_list(lines: list[str]) -> bool:
    """Whether the last line belongs to an item of a list."""
    for line in reversed(lines):
        if _ITEM.match(line):
            return True
        if not line.strip() or not line.startswith(" "):
            return False
    return False


def _title(file: Path) -> str:
    return file.read_text("utf-8").partition("\n")[0].lstrip("# ")


def _in_order(files: Iterable[Path]) -> list[Path]:
    """Files by name, numbers in it by size."""
    return sorted(
        files, key=lambda f: [int(p) if p.isdigit() else p for p in _NUMBER.split(f.stem)]
    )


def _from_top(text: str) -> str:
    """A page whose links lead from the top of the repository, with links that lead from docs."""

    def moved(link: re.Match[str]) -> str:
        target, _, anchor = link[2].partition("#")
        target = PAGES.get(target, target.removeprefix("docs/"))
        return f"{link[1]}{target}{'#' if anchor else ''}{anchor})"

    return _LINK.sub(moved, text)


def _gallery() -> str:
    """All pictures of the pages, each with what it is called and where it stands."""
    parts = ["# Gallery\n\nEvery picture of these pages, with the page that explains it.\n"]
    seen: set[str] = set()
    pages = [("index.md", _from_top((ROOT / "README.md").read_text("utf-8")))]
    docs = ROOT / "docs"
    found = [*sorted(docs.glob("*.md")), *_in_order((docs / "results").glob("*.md"))]
    pages += [(file.relative_to(docs).as_posix(), file.read_text("utf-8")) for file in found]
    for name, text in pages:
        title = text.partition("\n")[0].lstrip("# ")
        for says, picture in _PICTURE.findall(text):
            picture = (PurePosixPath(name).parent / picture).as_posix()
            if picture not in seen and not picture.startswith("http"):
                seen.add(picture)
                parts.append(f"## {says[:1].upper()}{says[1:]}\n\n![{says}]({picture})\n")
                parts.append(f"From [{title}]({name}).\n")
    return "\n".join(parts)


def _modules() -> Iterator[str]:
    for file in sorted((ROOT / "tinyfusion").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            yield ".".join(parts)


def _packages() -> list[str]:
    """Packages, and `TOP`: the modules at the top of the package."""
    found = {name.split(".")[1] for name in _modules() if name.count(".") > 1}
    return [TOP, *sorted(found)]


def _reference_page(package: str) -> str:
    return f"api/{package.replace(' ', '-')}.md"


def _reference(package: str) -> str:
    """The page of a package."""
    top = package == TOP
    names = [n for n in _modules() if (n.count(".") == 1 if top else n.split(".")[1] == package)]
    init = ROOT / "tinyfusion" / package / "__init__.py"
    if not top and re.search(r"^(def|class) ", init.read_text("utf-8"), re.M):
        names.insert(0, f"tinyfusion.{package}")
    title = "Top-level modules" if top else f"tinyfusion.{package}"
    return f"# {title}\n\n" + "\n\n".join(f"::: {name}" for name in names if ".assets." not in name)


def _public_names() -> str:
    """The page of what ``import tinyfusion as tf`` offers, linked to where each is described."""
    lines = ["# The Python interface\n", "What `import tinyfusion as tf` offers.\n"]
    lines += ["| name | what it is |", "|:--|:--|"]
    for name in tinyfusion.__all__:
        found = getattr(tinyfusion, name)
        if not isinstance(found, str):  # the version
            home = getattr(found, "__module__", found.__name__)
            full = home if home == found.__name__ else f"{home}.{found.__name__}"
            says = (found.__doc__ or "").partition("\n")[0]
            lines.append(f"| [`tf.{name}`][{full}] | {says} |")
    return "\n".join(lines)
