"""Running the works of a study: one Hydra multirun for each command and level, by any launcher."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from tinyfusion.commands.multirun import multirun
from tinyfusion.studies.state import RUNS, StudyState
from tinyfusion.studies.works import Work, typed


def carry_out(
    state: StudyState, works: Iterable[Work], launcher: Sequence[str] = (), group: str | None = None
) -> list[Work]:
    """Do all that is still to be done for some works.

    A work that fails does not keep others from being done, but those that need it.

    Args:
        state: what is known of the works.
        works: what is wanted.
        launcher: overrides of Hydra's own part, such as ``hydra/launcher=joblib``.
        group: what loggers call the runs together.

    Returns:
        The works that are still to be done: they failed, are being done by another process, or
        wait for one of these.

    Raises:
        InputError: a wrong configuration.
        Interrupted: a run was interrupted; what was begun is resumed by the same call.
    """
    works = list(works)
    tried: set[Work] = set()
    while True:
        state.look_again()
        pending = state.pending(works)
        ready = [
            work
            for work in pending
            if not state.find(work).waits and not state.lacks_files(work) and work not in tried
        ]
        if not ready:
            return pending
        # Decisions first: what they are for may be the same work for several of them.
        level = min(work.level for work in ready)
        command = next(work.command for work in ready if work.level == level)
        batch = [work for work in ready if (work.level, work.command) == (level, command)]
        tried |= set(batch)
        later = (
            f", {len(pending) - len(batch)} further ones later" if len(pending) > len(batch) else ""
        )
        print(f"study: {len(batch)} x tinyfusion {command}{later}", file=sys.stderr)
        jobs = []
        for work in batch:
            folder = state.find(work).folder
            jobs.append((folder.name, typed(work.filled(state.places(work)))))
        multirun(command, jobs, state.root / RUNS, launcher, state.folders, group)
