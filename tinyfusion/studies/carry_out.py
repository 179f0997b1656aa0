"""Running the works of a study: one Hydra multirun for each command and level, by any launcher."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tinyfusion.errors import InputError
from tinyfusion.settings.overrides import quote
from tinyfusion.settings.overview import conf_folder
from tinyfusion.studies.state import RUNS, StudyState
from tinyfusion.studies.works import Work, typed


def carry_out(
    state: StudyState, works: Iterable[Work], launcher: Sequence[str] = ()
) -> dict[str, Work]:
    """Do all that is still to be done for some works.

    A work that fails does not keep others from being done, but those that need it.

    Args:
        state: what is known of the works.
        works: what is wanted.
        launcher: overrides of Hydra's own part, such as ``hydra/launcher=joblib``.

    Returns:
        The works that failed, or wait for one that did, by name.

    Raises:
        InputError: a wrong configuration; nothing is run then.
        Interrupted: a run was interrupted; what was begun is resumed by the same call.
    """
    works = list(works)
    for work in works:
        state.find(work)  # refuses wrong configurations before anything is run
    tried: set[str] = set()
    while True:
        state.look_again()
        pending = state.pending(works)
        ready = [
            work
            for work in pending
            if not state.find(work).waits and not state.lacks_files(work) and work.name not in tried
        ]
        if not ready:
            return {work.name: work for work in pending}
        # Decisions first: what they are for may be the same work for several of them.
        level = min(work.level for work in ready)
        command = next(work.command for work in ready if work.level == level)
        batch = [work for work in ready if (work.level, work.command) == (level, command)]
        tried |= {work.name for work in batch}
        jobs = []
        for work in batch:
            folder = state.find(work).folder
            jobs.append((folder.name, typed(work.filled(state.places(work)))))
        multirun(command, jobs, state.root / RUNS, launcher, state.folders)


def multirun(
    command: str,
    jobs: Sequence[tuple[str, Sequence[str]]],
    sweep: Path,
    launcher: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> int:
    """Run a command with several lists of overrides, as a sweep of Hydra's does with its own.

    Hydra's sweepers make the lists themselves, by crossing values; its launchers take any.

    Args:
        command: the command.
        jobs: folder's name and overrides (in Hydra's grammar) of each run.
        sweep: folder of these folders; runs that they hold are resumed.
        launcher: overrides of Hydra's own part.
        folders: further configuration folders (``--config-dir``).

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
    from tinyfusion.runtime.session import Session
    from tinyfusion.settings.messages import explain

    shared = [
        f"hydra.sweep.dir={quote(str(sweep))}",
        "hydra.callbacks.tinyfusion.resuming=true",
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
        plugin.launch(
            [[*overrides, f"hydra.sweep.subdir={quote(name)}"] for name, overrides in jobs], 0
        )
    except HydraException as error:
        raise InputError(explain(error, command, list(folders))) from None
    finally:
        sys.argv = before
        job.session = None
        GlobalHydra.instance().clear()
    return session.close()
