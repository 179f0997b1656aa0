"""Draw the layers of the package from its imports, and list what lives in each file.

python scripts/architecture.py            (writes docs/architecture.png and the list in
                                           docs/architecture.md)
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tinyfusion"
DOCS = ROOT / "docs"
BEGIN, END = "<!-- files: begin -->", "<!-- files: end -->"


def modules() -> dict[str, Path]:
    """Every module by dotted name without the leading ``tinyfusion.``; the root is left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imported(path: Path, known: Mapping[str, Path]) -> set[str]:
    """Modules of the package that a file imports anywhere, also inside functions.

    Raises:
        ValueError: an import is relative.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}, line {node.lineno}: relative import")
            # `from tinyfusion.x import y` may name a module y.
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(name if name.removeprefix("tinyfusion.") in known else str(node.module))
    return {name.removeprefix("tinyfusion.") for name in names if name.startswith("tinyfusion.")}


def layers(known: Mapping[str, Path]) -> tuple[dict[str, set[str]], dict[str, int]]:
    """Imports among packages and top modules, and the height of each above what it needs."""
    edges: dict[str, set[str]] = {name.split(".")[0]: set() for name in known}
    for name, path in known.items():
        own = name.split(".")[0]
        edges[own] |= {other.split(".")[0] for other in imported(path, known)} - {own}
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = 1 + max((height(other) for other in edges[name]), default=-1)
        return heights[name]

    for name in edges:
        height(name)
    return edges, heights


def direct(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The imports that do not follow from others."""

    def reached(name: str) -> set[str]:
        return set().union(*({other} | reached(other) for other in edges[name]))

    return {
        name: others - set().union(*(reached(other) for other in others))
        for name, others in edges.items()
    }


def draw(edges: Mapping[str, set[str]], heights: Mapping[str, int], path: Path) -> None:
    """One row a layer, what depends on nothing below; an arrow for each import."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows: dict[int, list[str]] = {}
    for name, level in heights.items():
        rows.setdefault(level, []).append(name)
    places: dict[str, tuple[float, float]] = {}
    widest = max(map(len, rows.values()))
    for level in sorted(rows):
        # Above what they import, as far as there is room.
        names = sorted(
            rows[level],
            key=lambda name: (
                sum(places[o][0] for o in edges[name]) / max(1, len(edges[name])),
                name,
            ),
        )
        for index, name in enumerate(names):
            places[name] = ((index + 0.5) * widest / len(names), float(level))
    figure, axes = plt.subplots(figsize=(2.0 + 1.9 * widest, 1.0 + 0.62 * len(rows)))
    for name, others in direct(edges).items():
        for other in sorted(others):
            axes.annotate(
                "",
                places[other],
                places[name],
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "#9aa5b1",
                    "lw": 0.8,
                    "shrinkA": 10,
                    "shrinkB": 10,
                },
                zorder=1,
            )
    for name, (x, y) in places.items():
        is_package = (PACKAGE / name).is_dir()
        axes.text(
            x,
            y,
            name,
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold" if is_package else "normal",
            zorder=2,
            bbox={
                "boxstyle": "round,pad=0.35",
                "facecolor": "#dbeafe" if is_package else "#f3f4f6",
                "edgecolor": "#64748b",
                "linewidth": 0.8,
            },
        )
    axes.set_xlim(0, widest)
    axes.set_ylim(-0.7, max(rows) + 0.7)
    axes.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def first_line(path: Path) -> str:
    """What a file's docstring says first."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").strip()


def listing(known: Mapping[str, Path], heights: Mapping[str, int]) -> str:
    """Every package and top module with its files, from the lowest layer up, in Markdown."""
    lines = []
    for name in sorted(heights, key=lambda name: (heights[name], name)):
        own = PACKAGE / name
        if not own.is_dir():
            lines.append(f"- `{name}.py`: {first_line(known[name])}")
            continue
        lines.append(f"- **`{name}/`**: {first_line(own / '__init__.py')}")
        lines += [
            f"  - `{path.name}`: {first_line(path)}"
            for module, path in known.items()
            if module.startswith(f"{name}.") and path.name != "__init__.py"
        ]
    return "\n".join(lines)


def updated(text: str, content: str) -> str:
    """The document with a new list between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main() -> int:
    """Write picture and list."""
    known = modules()
    edges, heights = layers(known)
    draw(edges, heights, DOCS / "architecture.png")
    file = DOCS / "architecture.md"
    text = file.read_text(encoding="utf-8")
    file.write_text(updated(text, listing(known, heights)), encoding="utf-8")
    print(f"{len(known)} modules in {len(edges)} packages and top modules, {max(heights.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
