"""`tinyfusion study`: a table or figure of many runs, by one command.

    tinyfusion study table4 scale=digits
    tinyfusion study table4 scale=digits seeds=0,1 hydra/launcher=joblib hydra.launcher.n_jobs=2
    tinyfusion study --list

What is complete is not run again, what is begun is resumed. Further keys are overrides for every
run, such as training.recovery.steps=5; hydra/launcher and its keys say how runs are started.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyfusion.errors import InputError, refused_by_system
from tinyfusion.interrupts import Interrupted


def main(argv: Sequence[str]) -> int:
    """Carry out a study.

    Args:
        argv: arguments after the tool's name.

    Returns:
        Exit status: 0; 1 if runs that were to be done have failed or are done elsewhere.

    Raises:
        InputError: a study, scale, key or value that is not valid.
        Interrupted: a run was interrupted; the same command resumes it.
    """
    parser = argparse.ArgumentParser(
        prog="tinyfusion study", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", nargs="?", help="the study; --list names all")
    parser.add_argument("--list", action="store_true", help="list the studies")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be run, and how long it takes"
    )
    parser.add_argument("--report", action="store_true", help="only report what is complete")
    parser.add_argument(
        "--publish", type=Path, metavar="DIR",
        help="write the report there, and the records behind it, which count as complete from "
        "then on if DIR is docs/results of this checkout",
    )  # fmt: skip
    parser.add_argument(
        "--root", type=Path, default=Path("outputs", "study"), help="folder of the runs"
    )
    parser.add_argument(
        "--config-dir", type=Path, action="append", default=[], metavar="DIR",
        help="folder with configuration of one's own; studies in DIR/study",
    )  # fmt: skip
    options, texts = parser.parse_known_args(list(argv))
    unknown = [text for text in texts if text.startswith("-") or "=" not in text]
    if unknown:
        raise InputError(f"study: {unknown[0]!r} is neither an option nor key=value; see --help")
    from tinyfusion.studies.session import StudySession, listing

    folders = [folder.absolute() for folder in options.config_dir]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--config-dir={folder} is no folder")
    if options.list or options.name is None:
        print(listing(folders), end="")
        return 0
    if "=" in options.name:
        raise InputError(f"study: the name of a study comes first, not {options.name!r}")
    own, given, launcher = _sorted(texts)
    from tinyfusion.studies.definition import read_study

    study = read_study(options.name, own.get("scale"), folders)
    root = options.root.absolute()
    session = StudySession.begin(study, root, given, _seeds(own.get("seeds")), launcher, folders)
    if options.dry_run:
        print(session.forecast(), end="")
        return 0
    session.check()
    for option, folder in (("--root", root), ("--publish", options.publish)):
        if folder is not None:
            _make(option, folder)
    pending = []
    try:
        if not options.report:
            pending = session.run()
    except Interrupted as stop:
        stop.again = "the same command resumes it"
        raise
    outcome = session.outcome()
    folder = root / "reports" / f"{study.name}.{study.scale}"
    print(session.report(outcome, folder), end="", flush=True)
    print(f"study: report in {folder}: {study.name}.md, {study.name}.html", file=sys.stderr)
    if options.publish is not None:
        session.publish(outcome, options.publish)
        print(f"study: report and records in {options.publish}", file=sys.stderr)
    for work in pending:
        print(f"study: {session.state.why_pending(work)}", file=sys.stderr)
    return int(bool(pending))


def _make(option: str, folder: Path) -> None:
    """Make a folder before anything is run for it.

    Raises:
        InputError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option}: {refused_by_system(error, folder)}") from None


def _sorted(texts: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """The study's own keys, overrides and values for its runs, and those of Hydra's part."""
    own: dict[str, str] = {}
    given, launcher = [], []
    for text in texts:
        key, _, value = text.partition("=")
        if key in ("scale", "seeds"):
            own[key] = value
        elif key.split(".")[0].split("/")[0] == "hydra":
            launcher.append(text)
        else:
            given.append(text)
    return own, given, launcher


def _seeds(text: str | None) -> list[int]:
    """Seeds as given: ``0,1,2``; none if they were not.

    Raises:
        InputError: not whole numbers, or one is given twice.
    """
    if text is None:
        return []
    try:
        seeds = [int(part) for part in text.strip("[]").split(",")]
    except ValueError:
        raise InputError(f"seeds={text}: give whole numbers, such as seeds=0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={text} gives a seed twice")
    return seeds
