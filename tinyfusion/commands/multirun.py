"""One command with any lists of overrides, as a sweep of Hydra's and by any of its launchers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tinyfusion.errors import InputError
from tinyfusion.runtime.session import Session
from tinyfusion.settings.messages import explain
from tinyfusion.settings.overrides import quote
from tinyfusion.settings.overview import conf_folder


def multirun(
    command: str,
    jobs: Sequence[tuple[str, Sequence[str]]],
    sweep: Path,
    launcher: Sequence[str] = (),
    folders: Sequence[Path] = (),
    group: str | None = None,
) -> int:
    """Run a command with several lists of overrides, as a sweep of Hydra's does with its own.

    Hydra's sweepers make the lists themselves, by crossing values; its launchers take any.

    Args:
        command: the command.
        jobs: folder's name and overrides (in Hydra's grammar) of each run.
        sweep: folder of these folders; runs that they hold are resumed.
        launcher: overrides of Hydra's own part.
        folders: further configuration folders (``--config-dir``).
        group: what loggers call the runs together; default: the name of ``sweep``.

    Returns:
        Exit status, as of a sweep.

    Raises:
        InputError: a launcher that there is not.
        Interrupted: a run was interrupted.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import HydraContext, RunMode

    from tinyfusion.commands import job

    shared = [
        "hydra.mode=MULTIRUN",
        f"hydra.sweep.dir={quote(str(sweep))}",
        "hydra.callbacks.tinyfusion.resuming=true",
        *([f"hydra.callbacks.tinyfusion.group={quote(group)}"] if group else []),
        *([f"hydra.searchpath=[{','.join(map(str, folders))}]"] if folders else []),
        *launcher,
    ]
    before = sys.argv
    GlobalHydra.instance().clear()
    job.session = session = Session(sweep=sweep)
    sys.argv = [f"tinyfusion {command}"]
    try:
        hydra = Hydra.create_main_hydra2(command, create_config_search_path(str(conf_folder())))
        config = hydra.compose_config(
            command, shared, run_mode=RunMode.MULTIRUN, with_log_configuration=False
        )
        callbacks = Callbacks(config)
        HydraConfig.instance().set_config(config)
        plugin = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=callbacks),
            task_function=job.attempt,
            config=config,
        )
        for ended in plugin.launch(
            [[*overrides, f"hydra.sweep.subdir={quote(name)}"] for name, overrides in jobs], 0
        ):
            _ = ended.return_value  # raises what a job did not report, such as a fault of ours
    except HydraException as error:
        raise InputError(explain(error, command, list(folders))) from None
    finally:
        sys.argv = before
        job.session = None
        GlobalHydra.instance().clear()
    return session.close()
