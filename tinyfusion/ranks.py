"""Which of a run's processes this is, by the environment variables that it was started with.

A run on several devices is one process ("rank") per device. They are started by this package
itself (`tinyfusion.runtime.launch`), by ``torchrun``, or by SLURM's ``srun``.
"""

from __future__ import annotations

import os

from tinyfusion.errors import InputError

_INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs in which a person types; their tasks are not ranks."""


def is_first_rank() -> bool:
    """Whether this process is the one that writes and logs; the only one, or rank 0."""
    rank = _number("RANK")
    if rank is not None:
        return rank == 0
    # Started one by one, by Lightning's names: the first of the first machine.
    node = _number("NODE_RANK", "GROUP_RANK")
    if node or _number("LOCAL_RANK"):
        return False
    return not _number("SLURM_PROCID")


def rank() -> int:
    """Number of this process among the ranks; 0 for the only one.

    Of ranks that were started by Lightning's names alone it is the number on this machine, see
    `is_numbered`.
    """
    return _number("RANK", "SLURM_PROCID", "LOCAL_RANK") or 0


def is_numbered() -> bool:
    """Whether the ranks are numbered over all machines."""
    return _number("RANK", "SLURM_PROCID") is not None


def local_rank() -> int:
    """Number of this process among the ranks of this machine; 0 for the only one."""
    return _number("LOCAL_RANK", "SLURM_LOCALID") or 0


def world_size() -> int | None:
    """Number of ranks that were started, if the environment holds it."""
    return _number("WORLD_SIZE", "SLURM_NTASKS") if is_rank() else None


def is_rank() -> bool:
    """Whether this process was started as one of the ranks of a run."""
    return _number("LOCAL_RANK") is not None or is_slurm_rank()


def is_slurm_rank() -> bool:
    """Whether ``srun`` started this process as one of several."""
    return (
        (_number("SLURM_NTASKS") or 1) > 1
        # A batch script itself, which SLURM starts once, has a number but belongs to no step.
        and _number("SLURM_STEP_ID", "SLURM_STEPID") is not None
        and _number("SLURM_PROCID") is not None
        and os.environ.get("SLURM_JOB_NAME") not in _INTERACTIVE
    )


def is_torchrun_rank() -> bool:
    """Whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_one_of_several_nodes() -> bool:
    """Whether this command was started on several machines, each by hand (``NODE_RANK``)."""
    return not is_rank() and _number("NODE_RANK") is not None and "MASTER_ADDR" in os.environ


def shared_stamp(stamp: str) -> str:
    """What names a run's folder: the time, or what all ranks that started apart agree on.

    Args:
        stamp: the time of this process.

    Raises:
        InputError: nothing tells one run of several ranks from another.
    """
    if is_slurm_rank():
        # Counted from 0 within the job: two runs of one job stay apart.
        step = os.environ.get("SLURM_STEP_ID", "0")
        return f"slurm-{os.environ.get('SLURM_JOB_ID', '0')}.{step}"
    if is_rank() or is_one_of_several_nodes():
        raise InputError(
            "the ranks of this run were started apart, and folders named by the time would "
            "differ; name the run's folder: hydra.run.dir=FOLDER (a new one) or resume=FOLDER"
        )
    return stamp


def _number(*names: str) -> int | None:
    """The value of the first of these variables that holds an integer."""
    for name in names:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return None
