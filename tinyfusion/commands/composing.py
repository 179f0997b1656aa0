"""Composing the configuration(s) of a command line by Hydra, and starting the job(s)."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tinyfusion.errors import InputError, refused_by_system, system_error
from tinyfusion.interrupts import Interrupted
from tinyfusion.ranks import is_one_of_several_nodes, place
from tinyfusion.settings.overview import conf_folder

_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"
"""Hydra's key of what the folders of a sweep's runs are not named by."""

CONFIG_FLAGS = ("--config-dir", "-cd")


def compose_and_run(
    command: str, rest: Sequence[str], typed: bool = True
) -> tuple[int, Path | None]:
    """Let Hydra compose the configuration(s), make the folder(s) and call the job(s).

    Args:
        command: the command.
        rest: flags and overrides.
        typed: whether a user typed the overrides; else they are in Hydra's grammar already.

    Returns:
        Exit status, and the folder of a sweep of which several runs have ended well.

    Raises:
        InputError: what Hydra refuses, or none of the jobs can do.
        Interrupted: a job was interrupted.
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
        overrides = kept_when_left_out(overrides, own_folders(rest))
    brought = brought_groups(command, overrides, own_folders(rest))
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
        raise InputError(explain(error, command, own_folders(rest))) from None
    except SystemExit as stop:  # Hydra leaves this way after --cfg, --info and the like
        if session.refusal is not None:
            raise session.refusal from None
        return int(stop.code or 0), None
    except UnicodeDecodeError as error:
        raise InputError(_not_utf_8(error, own_folders(rest))) from None
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
    return status, session.sweep if session.done > 1 else None


def brought_groups(command: str, overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
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


def _divided(rest: Sequence[str]) -> tuple[list[str], list[str]]:
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


def own_folders(rest: Sequence[str]) -> list[Path]:
    """Folders given with ``--config-dir``."""
    found = [b for a, b in pairwise(rest) if a in CONFIG_FLAGS]
    found += [text.partition("=")[2] for text in rest if text.startswith("--config-dir=")]
    return [Path(folder) for folder in found]
