"""How the cost of steps grows with depth, tokens, batch and width, and what large networks take.

Measures steps of the published recipe on small networks of many sizes (one CPU thread, about six
minutes of it), fits the model of their cost, draws both, and predicts for networks of 12B and 20B
parameters. What is measured is kept in --root, so that it continues where it was ended.

    python scripts/cost_growth.py --output docs/performance.md
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from tinyfusion.files import write_text
from tinyfusion.metrics.benchmark import device_name
from tinyfusion.studies.growth import BASE, fitted_sizes, held_out_sizes, measure_all
from tinyfusion.studies.growth_report import (
    fit_all,
    fit_table,
    network_parts,
    picture,
    published_table,
    term_table,
)

MARKS = ("<!-- cost growth: begin -->", "<!-- cost growth: end -->")


def updated(text: str, content: str) -> str:
    """A document with new content between `MARKS`; at its end if it has none."""
    begin, end = MARKS
    before, found, rest = text.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    return f"{before}{begin}\n\n{content}\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("outputs", "cost_growth"))
    parser.add_argument("--passes", type=int, default=2, help="times that all sizes are measured")
    parser.add_argument(
        "--output", type=Path, help="Markdown file to write the tables to, the picture beside it"
    )
    arguments = parser.parse_args(argv)
    if arguments.passes < 1:
        parser.error(f"--passes={arguments.passes} must be at least 1")
    torch.set_num_threads(1)
    # Of networks under autocast whose norms are in float32: it is how they are run.
    warnings.filterwarnings("ignore", ".*Mismatch dtype between input and weight.*")
    sizes = [*fitted_sizes(), *held_out_sizes()]
    points = measure_all(sizes, arguments.root / "points.json", arguments.passes)
    models = fit_all(points)
    content = "\n".join(
        [
            f"{device_name(torch.device('cpu'))}, one thread, torch {torch.__version__}, float32; "
            f"{len(fitted_sizes())} sizes around {BASE.depth} blocks, {BASE.width} channels, "
            f"{BASE.tokens} tokens and batch {BASE.batch} are fitted, {len(held_out_sizes())} "
            "larger ones are not.\n",
            fit_table(points, models),
            "Coefficients:\n",
            term_table(models),
            "### Counts beside the papers'\n",
            published_table(),
            "### Networks of 12B and 20B parameters\n",
            *network_parts(),
        ]
    )
    print(f"\n{content}")
    place = arguments.output or arguments.root / "report.md"
    picture(points, models, place.with_name("cost_growth.png"))
    text = place.read_text(encoding="utf-8") if place.is_file() else ""
    write_text(place, updated(text, content))


if __name__ == "__main__":
    main()
