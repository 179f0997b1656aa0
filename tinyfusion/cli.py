"""``tinyfusion COMMAND [overrides]``: Hydra underneath, one-line errors, resume without Hydra.

Nothing heavy is imported before it is known that there is work to do, so ``--help`` is quick.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tinyfusion.errors import InputError, refused_by_system, system_error
from tinyfusion.interrupts import Interrupted, handled
from tinyfusion.notices import repeated
from tinyfusion.ranks import clear_leftovers, is_first_rank, is_one_of_several_nodes, place
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

_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"
"""Hydra's key of what the folders of a sweep's runs are not named by."""

CONFIG_FLAGS = ("--config-dir", "-cd")


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
        from tinyfusion.settings.overview import overview

        print(overview(command, _own_folders(rest)), end="")
        return 0
    resume = [text for text in rest if text.startswith("resume=")]
    if resume and resume[-1] not in ("resume=", "resume=null"):
        others = [text for text in rest if text != resume[-1]]
        if others:
            raise InputError(
                f"resume= takes the configuration stored in the folder; remove {others[0]!r}"
            )
        return _resume(command, resume[-1].removeprefix("resume="))
    return _compose_and_run(command, rest)


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
        return _compose_and_run(command, sweep.arguments, typed=False)


def _compose_and_run(command: str, rest: list[str], typed: bool = True) -> int:
    """Let Hydra compose the configuration(s), make the folder(s) and call the job(s).

    Args:
        command: the command.
        rest: flags and overrides.
        typed: whether a user typed the overrides; else they are in Hydra's grammar already.
    """
    # Hydra prints its own report and exits unless asked for the plain exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from tinyfusion.commands import job
    from tinyfusion.runtime.session import SWEEP_FILE, Session
    from tinyfusion.settings.messages import explain, refuse_bad_choices
    from tinyfusion.settings.overrides import as_typed, shared, swept
    from tinyfusion.settings.overview import conf_folder
    from tinyfusion.settings.written import kept_when_left_out

    _check_working_folder()
    # A key of the commands that train; also taken as one that is added.
    rest = [text.removeprefix("+") if text.startswith("+dry_run") else text for text in rest]
    flags, overrides = _divided(rest)
    refuse_bad_choices(overrides)
    sweeping = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(rest))
    if sweeping:
        _refuse_ranks()
    if typed:
        overrides = given = [as_typed(text, sweeping) for text in overrides]
        overrides = swept(overrides) if sweeping else overrides
        overrides = kept_when_left_out(overrides, _own_folders(rest))
    brought = _brought_along(command, overrides, _own_folders(rest))
    if typed and sweeping and not any(text.startswith(_EXCLUDED) for text in overrides):
        overrides = [*overrides, f"{_EXCLUDED}=[{','.join(shared([*brought, *given]))}]"]
    overrides = [*brought, *overrides]
    before = sys.argv
    job.session = session = Session()
    sys.argv = [f"tinyfusion {command}", *flags, *overrides]
    run = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=command)
    try:
        run(job.attempt)()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        cause: BaseException | None = error
        while cause is not None:  # a resolver of ours may have refused
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise InputError(explain(error, command, _own_folders(rest))) from None
    except SystemExit as stop:  # Hydra leaves this way after --cfg, --info and the like
        if session.refusal is not None:
            raise session.refusal from None
        return int(stop.code or 0)
    except UnicodeDecodeError as error:
        raise InputError(_not_utf_8(error, _own_folders(rest))) from None
    except ValueError:
        # An optimiser that had no trial to name the best of; why is said already.
        if session.sweep is None or not session.failures or session.done:
            raise
    except OSError as error:
        # Before a job begins it is Hydra that makes its folder.
        made = error.errno in (errno.EEXIST, errno.ENOENT) or system_error(error) is not None
        if session.begun or not made:
            raise
        key = "hydra.run.dir" if session.sweep is None else "hydra.sweep.dir"
        what = f"the run's folder can't be made ({key}=, output_root=): "
        if str(error.filename).endswith(".yaml"):  # a file of configuration, or Hydra's of a sweep
            what = ""
        raise InputError(what + refused_by_system(error)) from None
    except Interrupted as stop:
        if session.sweep is not None and (session.sweep / SWEEP_FILE).is_file():
            stop.resume = session.sweep
        raise
    finally:
        sys.argv = before
        job.session = None
    status = session.close()
    if session.sweep is not None and session.done > 1:
        from tinyfusion.report.terminal import print_sweep

        print_sweep(session.sweep)
    return status


def _brought_along(command: str, overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Groups that a checkpoint brings, as far as values of them are given.

    The others are chosen once the configuration is composed and known to be right.
    """
    if not any(text.startswith(("checkpoint=", "models=")) for text in overrides):
        return []
    if not any("." in text.partition("=")[0] for text in overrides):
        return []
    from tinyfusion.settings.brought import overrides_for

    return overrides_for(command, [text for text in overrides if "=" in text], folders)


def _check_working_folder() -> None:
    """Refuse a working folder that paths can't be resolved against.

    Raises:
        InputError: it has been removed, or its name can't stand in a configuration.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise InputError("the working folder has been removed; change to another") from None
    if "${" in here:
        raise InputError(
            f"the working folder is {here}: in a configuration '${{' begins a reference to another "
            "key; start the command elsewhere"
        )


def _refuse_ranks() -> None:
    """Refuse a sweep in a process that is one of several.

    Raises:
        InputError: this process was started as a rank by torchrun, srun or the like, or is on
            one of several nodes.
    """
    if place().size > 1 or is_one_of_several_nodes():
        raise InputError(
            "a sweep can't be run by ranks that were started apart (torchrun, srun, NODE_RANK): "
            "each would run all of it; start 'tinyfusion COMMAND -m' once, which starts the "
            "ranks of every run itself, or leave that to hydra/launcher=submitit_slurm with "
            "hydra.launcher.tasks_per_node=DEVICES"
        )


def _divided(rest: list[str]) -> tuple[list[str], list[str]]:
    """Flags and overrides; Hydra's parser wants overrides in one piece.

    Raises:
        InputError: a flag that Hydra does not know.
    """
    from hydra._internal.utils import get_args_parser

    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            overrides = get_args_parser().parse_intermixed_args(rest).overrides
    except SystemExit:
        last = report.getvalue().strip().splitlines()[-1]
        raise InputError(last.rpartition("error: ")[2]) from None
    return [text for text in rest if text not in overrides], list(overrides)


def _not_utf_8(error: UnicodeDecodeError, folders: Sequence[Path]) -> str:
    """Which configuration file is not UTF-8: the error itself does not say."""
    for file in (file for folder in folders for file in sorted(folder.rglob("*.yaml"))):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError as found:
            return f"{file} is not UTF-8 text ({found}); save it as UTF-8"
        except OSError:
            continue
    return f"a configuration file is not UTF-8 text ({error}); save it as UTF-8"


def _own_folders(rest: Sequence[str]) -> list[Path]:
    """Folders given with ``--config-dir``."""
    found = [b for a, b in pairwise(rest) if a in CONFIG_FLAGS]
    found += [text.partition("=")[2] for text in rest if text.startswith("--config-dir=")]
    return [Path(folder) for folder in found]


if __name__ == "__main__":
    raise SystemExit(main())
