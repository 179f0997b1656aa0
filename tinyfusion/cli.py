"""``tinyfusion COMMAND [overrides]``: Hydra underneath, one-line errors, resume without Hydra.

Nothing heavy is imported before it is known that there is work to do, so ``--help`` is quick.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyfusion.errors import InputError, refused_by_system
from tinyfusion.interrupts import Interrupted, handled
from tinyfusion.notices import repeated
from tinyfusion.ranks import clear_leftovers, is_first_rank
from tinyfusion.runtime.report import report
from tinyfusion.runtime.streams import patient_streams, reader_has_left
from tinyfusion.settings.commands import SUMMARIES
from tinyfusion.version import __version__

USAGE = """\
usage: tinyfusion COMMAND [key=value ...] [-m]

commands:
{commands}

tools:
{tools}

Keys choose and change parts of the configuration, for example
  tinyfusion run scheme=2:4 delta=full seed=1
  tinyfusion run -m scheme=1:2,2:4,7:14 delta=lora,full,frozen     (a sweep, one folder per run)
  tinyfusion run resume=outputs/run/FOLDER                         (resume a killed run)
  tinyfusion run --cfg job                                         (print the configuration)

'tinyfusion COMMAND --help' lists a command's keys and choices; 'tinyfusion --version'.
"""

TOOLS = {
    "inspect": "print what a checkpoint, decision or adapter is",
    "convert": "write a checkpoint in another layout: ours, public or diffusers",
    "study": "a table or figure of many runs, such as one of the paper's; --list names them",
    "report": "table and page of any runs: figures, samples, curves, what differs between them",
    "remap-lora": "carry a LoRA adapter of the full model over to a pruned one",
    "completion": "print what makes bash, zsh or fish complete all this at the tab key",
}
"""Commands that take files and options instead of keys, and make no run folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Args:
        argv: arguments after the program's name; default: those of this process.

    Returns:
        Exit status: 0, 1 (failed at work), 2 (wrong input) or 128 and the number of the signal
        that interrupted it, such as 130.
    """
    with patient_streams() as out:
        status = _reported(list(sys.argv[1:] if argv is None else argv))
        out.flush()
        if out.failure is not None and not reader_has_left(out.failure):
            lost = f"standard output can't be written: {refused_by_system(out.failure)}"
            if out.results is not None:
                print(f"tinyfusion: {lost}; the results are in {out.results}", file=sys.stderr)
            else:  # what is printed was the result
                print(f"tinyfusion: error: {lost}", file=sys.stderr)
                status = status or 1
    return status


def _reported(arguments: list[str]) -> int:
    """The exit status of a command line; what ends it early has been said in one line."""
    try:
        with handled():
            return _main(arguments)
    except InputError as error:
        report(str(error))
        return 2
    except Interrupted as stop:
        if is_first_rank():
            again = stop.again or "nothing was begun"
            if stop.again is None and stop.resume is not None:
                again = f"continue with: tinyfusion {arguments[0]} "
                again += shlex.quote(f"resume={stop.resume}")
            print(f"tinyfusion: {stop}; {again}", file=sys.stderr)
        return stop.status


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands=_listed(SUMMARIES), tools=_listed(TOOLS)), end="")
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        print(f"tinyfusion {__version__}")
        return 0
    clear_leftovers()
    command, *rest = arguments
    if command == "completion":
        from tinyfusion.completion import shells

        return shells.main(rest, TOOLS)
    if command in TOOLS:
        return _use(command, rest)
    if command not in SUMMARIES:
        valid = ", ".join([*SUMMARIES, *TOOLS])
        raise InputError(f"unknown command {command!r}; valid: {valid}")
    if any(flag in ("-h", "--help") for flag in rest):
        from tinyfusion.commands.composing import own_folders
        from tinyfusion.settings.overview import overview

        print(overview(command, own_folders(rest)), end="")
        return 0
    resume = [text for text in rest if text.startswith("resume=")]
    if resume and resume[-1] not in ("resume=", "resume=null"):
        others = [text for text in rest if text != resume[-1]]
        if others:
            raise InputError(
                f"resume= takes the configuration stored in the folder; remove {others[0]!r}"
            )
        return _resume(command, resume[-1].removeprefix("resume="))
    return _run(command, rest)


def _listed(summaries: dict[str, str]) -> str:
    width = max(map(len, [*SUMMARIES, *TOOLS]))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in summaries.items())


def _use(tool: str, arguments: list[str]) -> int:
    """Run a tool; what it logs goes to stderr, so that its output can be piped."""
    logger, console = logging.getLogger("tinyfusion"), logging.StreamHandler()
    logger.addHandler(console)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        module = importlib.import_module(f"tinyfusion.tools.{tool.replace('-', '_')}")
        with repeated(tool):
            return module.main(arguments)
    except SystemExit as stop:  # argparse leaves this way after --help
        return int(stop.code or 0)
    finally:
        logger.removeHandler(console)
        logger.setLevel(level)
        logger.propagate = propagate


def _run(command: str, arguments: Sequence[str], typed: bool = True) -> int:
    """Run a command's job or jobs; of a sweep the table of its figures is printed at the end."""
    from tinyfusion.commands.composing import compose_and_run

    status, sweep = compose_and_run(command, arguments, typed)
    if sweep is not None:
        from tinyfusion.report.terminal import print_sweep

        print_sweep(sweep)
    return status


def _resume(command: str, value: str) -> int:
    from tinyfusion.commands.resume import resume_folder, stored_sweep
    from tinyfusion.settings.overrides import text_of
    from tinyfusion.settings.paths import existing

    found = existing("resume", value) or existing("resume", text_of(value))
    folder = Path(found or value).absolute()
    sweep = stored_sweep(command, folder)
    if sweep is None:
        return resume_folder(command, folder)
    # What configuration files say of paths is relative to where the sweep was started.
    with contextlib.chdir(sweep.cwd if sweep.cwd.is_dir() else Path.cwd()):
        return _run(command, sweep.arguments, typed=False)


if __name__ == "__main__":
    raise SystemExit(main())
