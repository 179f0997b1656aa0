"""`tinyfusion report`: a table and one page of any runs.

    tinyfusion report outputs/run/SWEEP
    tinyfusion report outputs/run/A outputs/run/B --columns method,keep,fid --sort fid
    tinyfusion report outputs/run --format latex --out results/runs

Prints the table and writes report.html, report.md, report.csv and report.tex. The page opens from
disk, without a network. Runs that differ in nothing but their seed are one row, with mean and
standard deviation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyfusion.errors import InputError

FORMATS = ("text", "md", "csv", "latex")


def main(argv: Sequence[str]) -> int:
    """Report runs.

    Args:
        argv: arguments after the tool's name.

    Returns:
        Exit status 0.

    Raises:
        InputError: a folder without runs, a file that can't be read or written, or a column or
            format that is not valid.
    """
    parser = argparse.ArgumentParser(
        prog="tinyfusion report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="folder of a run, a sweep or many of them"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR|FILE.html",
        help="where to write; default: the folder if one is given, else outputs/report",
    )  # fmt: skip
    parser.add_argument(
        "--columns", metavar="A,B", help="figures, keys of the configuration, run, method or seeds"
    )
    parser.add_argument("--sort", metavar="COLUMN", help="column to sort by, best first")
    parser.add_argument(
        "--format", default="text", help=f"of what is printed: {', '.join(FORMATS)}; default: text"
    )
    parser.add_argument("--paper", metavar="N", help="show the paper's table N on the page")
    parser.add_argument("--title", help="heading; default: the names of the folders")
    options = parser.parse_args(list(argv))
    if options.format not in FORMATS:
        raise InputError(f"report: --format {options.format}; valid: {', '.join(FORMATS)}")
    if options.paper is not None and not options.paper.isdigit():
        raise InputError(f"report: --paper {options.paper} must be the number of a table")
    from tinyfusion.report.page import page
    from tinyfusion.report.paper import paper_table
    from tinyfusion.report.reading import find_runs
    from tinyfusion.report.terminal import print_runs
    from tinyfusion.report.write import write_part, write_report

    paper = None if options.paper is None else paper_table(int(options.paper))
    columns = None if options.columns is None else options.columns.split(",")
    runs = find_runs(options.folders)
    title = options.title or ", ".join(Path(name).resolve().name for name in options.folders)
    out = options.out
    if out is None:
        out = Path(*options.folders) if len(options.folders) == 1 else Path("outputs", "report")
    if out.suffix == ".html":
        text = page(runs, title, out.parent, None, paper, columns, options.sort)
        written = write_part(out, text)
    else:
        written = write_report(runs, out, title, paper, columns, options.sort)["html"]
    print_runs(runs, title, options.format, columns, options.sort)
    print(f"tinyfusion: the page is {written}", file=sys.stderr)
    return 0
