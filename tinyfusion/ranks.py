"""Which of a run's processes this is: the one place that reads the variables that say so.

A run on several devices is one process ("rank") per device. They are started by this package
itself (`tinyfusion.runtime.launch`), by ``torchrun``, ``srun``, ``jsrun`` or an MPI's launcher, and
each numbers its processes by variables of its own. A number counts only together with the count of
the processes: ``RANK=1`` alone is left over from something else. `clear_leftovers` takes such
variables out of the environment, because Lightning and others act on them, and `agree` says so.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tinyfusion.errors import InputError


@dataclass(frozen=True)
class Place:
    """The place of this process among those that were started together.

    Attributes:
        rank: its number, 0..size-1.
        size: number of processes, over all machines.
        local: its number among those of this machine; ``None`` if the launcher does not say.
        per_node: number of processes on this machine; ``None`` if the launcher does not say.
        said_by: names of the variables that say so; nothing for the only process.
        by_srun: whether it is a task of a SLURM step.
    """

    rank: int = 0
    size: int = 1
    local: int | None = None
    per_node: int | None = None
    said_by: str = ""
    by_srun: bool = False


@dataclass(frozen=True)
class _Launcher:
    """Names of the variables by which a launcher numbers its processes."""

    rank: str
    sizes: tuple[str, ...]
    local: str
    per_node: str = ""
    """Number of processes on this machine; not every launcher says it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are left over if they do not add up."""
        return (self.rank, *self.sizes, self.local)

    def place(self) -> Place | None:
        """The place that they say; ``None`` if they do not add up to one."""
        rank, size = _number(self.rank), _number(*self.sizes)
        if rank is None or size is None or rank >= size:
            return None
        local = _number(self.local)
        if self.local in os.environ and (local is None or local >= size):
            return None
        said_by = ", ".join(name for name in self.names if name in os.environ)
        return Place(rank, size, local, _number(self.per_node), said_by)


_TORCH = _Launcher("RANK", ("WORLD_SIZE",), "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_HYDRA_MPI = _Launcher("PMI_RANK", ("PMI_SIZE",), "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_SRUN = _Launcher("SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_LOCALID")
_LAUNCHERS = (
    _TORCH,
    _Launcher(
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Launcher("MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",), "MV2_COMM_WORLD_LOCAL_RANK"),
    _Launcher("JSM_NAMESPACE_RANK", ("JSM_NAMESPACE_SIZE",), "JSM_NAMESPACE_LOCAL_RANK"),
    _HYDRA_MPI,
    # Last: MPI's launchers start their own daemons by srun.
    _SRUN,
)

_NODES = ("NODE_RANK", "GROUP_RANK")
"""Numbers of machines; the first is used where the command is started on each by hand."""

_SHELLS = frozenset(
    "sh ash bash dash zsh fish csh tcsh ksh mksh nu xonsh pwsh elvish tmux screen byobu zellij "
    "mosh ipython jupyter jupyter-lab jupyter-notebook code code-server sshd".split()
)
"""Names of SLURM jobs, by default those of their commands, in which a person types."""

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""SLURM's steps from here on are no tasks: an ``salloc`` shell, a batch script, an ssh login."""

_ignored: list[str] = []
"""Settings that `clear_leftovers` has taken out and `agree` has not yet spoken of."""


def place() -> Place:
    """The place of this process, by the environment as it stands."""
    for launcher in _LAUNCHERS:
        found = _place_by(launcher)
        # Of one process the launcher has nothing to say, unless it is to start all of them.
        if found is not None and (found.size > 1 or _is_torchrun(launcher)):
            return found
    return Place()


def is_first_rank() -> bool:
    """Whether this process is the one that writes and logs; the only one, or rank 0."""
    if is_rank():
        return place().rank == 0
    # Started one by one by Lightning, for users of the library, or by hand on every machine.
    return not (_number("NODE_RANK") or _number("LOCAL_RANK"))


def rank() -> int:
    """Number of this process among the ranks; 0 for the only one."""
    return place().rank


def local_rank() -> int:
    """Number of this process among the ranks of this machine; 0 for the only one."""
    here = place()
    return here.rank if here.local is None else here.local


def world_size() -> int | None:
    """Number of ranks that were started; ``None`` for a process that is none."""
    return place().size if is_rank() else None


def is_rank() -> bool:
    """Whether this process was started as one of the ranks of a run."""
    return bool(place().said_by)


def is_slurm_rank() -> bool:
    """Whether ``srun`` started this process as one of several."""
    return place().by_srun


def is_one_of_several_nodes() -> bool:
    """Whether this command was started on several machines, each by hand (``NODE_RANK``)."""
    return not is_rank() and _number("NODE_RANK") is not None and "MASTER_ADDR" in os.environ


def clear_leftovers() -> None:
    """Take variables out of the environment that number this process but add up to no place.

    Done before Lightning is imported, which takes whatever it finds for the number of its process,
    and then neither logs nor writes.
    """
    _ignored.clear()
    for launcher in _LAUNCHERS:
        if _place_by(launcher) is None:
            names = [name for name in launcher.names if name in os.environ]
            if launcher is _SRUN:
                # A batch script and a shell are process 0 of an allocation of any size.
                names = [n for n in (_SRUN.rank, _SRUN.local) if os.environ.get(n, "0") != "0"]
            elif launcher is _HYDRA_MPI and _step() is not None:
                names = []  # srun's own
            _take_out(names)


def agree(asked: str, count: int | None, per_node: int | None = None, num_nodes: int = 1) -> None:
    """Refuse other processes than are asked for; say which variables are left over and ignored.

    Called by every command before it makes or writes anything.

    Args:
        asked: the keys that say how many there are to be, for messages.
        count: processes that are to work, over all machines; ``None`` for as many as were started.
        per_node: how many of them on each machine; ``None`` for any number.
        num_nodes: number of machines.

    Raises:
        InputError: more or fewer processes were started than are asked for, or several are asked
            for and variables are left over that may be meant to number them.
    """
    here = place()
    if not here.said_by and num_nodes == 1:
        _take_out([name for name in _NODES if os.environ.get(name, "0") != "0"])
    left = " ".join(_ignored)
    if left and not here.said_by and count != 1:
        raise InputError(
            f"{asked}: several processes, and {left} may be meant to number them, but not all "
            "variables of a launcher are there; unset what is left over from another job, or "
            "start the processes by torchrun, srun or mpirun"
        )
    _ignored.clear()
    if left and here.rank == 0:
        said = f"{left} ignored: this is the only process" if here.size == 1 else f"{left} ignored"
        # Before there is a log.
        print(f"tinyfusion: warning: {said}", file=sys.stderr)
    if not here.said_by or count is None:
        return
    if here.size != count or (per_node and here.per_node and here.per_node != per_node):
        there = "" if here.size != count else f", {here.per_node} of them on this machine"
        raise InputError(
            f"{asked}: {count} process(es), but {here.size} were started{there}, as {here.said_by} "
            "say; start as many as are configured, or unset these variables if they are left over "
            "from another job"
        )


def shared_stamp(stamp: str) -> str:
    """What names a run's folder: the time, or what all ranks that started apart agree on.

    Args:
        stamp: the time of this process.

    Raises:
        InputError: nothing tells one run of several ranks from another.
    """
    if is_slurm_rank():
        # Counted from 0 within the job: two runs of one job stay apart.
        return f"slurm-{os.environ.get('SLURM_JOB_ID', '0')}.{_step()}"
    if place().size > 1 or is_one_of_several_nodes():
        raise InputError(
            "the ranks of this run were started apart, and folders named by the time would "
            "differ; name the run's folder: hydra.run.dir=FOLDER (a new one) or resume=FOLDER"
        )
    return stamp


def slurm_meeting_point() -> tuple[str, int]:
    """Address and port at which the tasks of this process's SLURM step meet.

    The first of the step's machines, and a port of its own for each job and step.
    """
    names = ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
    nodes = next((os.environ[name] for name in names if os.environ.get(name)), "127.0.0.1")
    # Such as gpu[03-07,11],cpu2 or a01,a02.
    first = re.split(r"[,\s](?![^\[]*\])", nodes)[0]
    first = re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first)
    return first, 15000 + ((_number("SLURM_JOB_ID") or 0) + 97 * (_step() or 0)) % 10000


def _place_by(launcher: _Launcher) -> Place | None:
    """The place that a launcher's variables say, if it is this process that they are about."""
    if launcher is _HYDRA_MPI and _step() is not None and launcher.local not in os.environ:
        return None  # srun sets the others for the sake of MPI programs
    found = launcher.place()
    if launcher is not _SRUN or found is None:
        return found
    if _step() is None or _is_typed():
        return None
    return Place(found.rank, found.size, found.local, None, found.said_by, found.size > 1)


def _is_torchrun(launcher: _Launcher) -> bool:
    return launcher is _TORCH and "TORCHELASTIC_RUN_ID" in os.environ


def _step() -> int | None:
    """Number of the SLURM step whose task this process is or was started by.

    ``None`` for a batch script and for the shell of ``salloc``, which belong to an allocation of
    maybe many tasks, but are none of them.
    """
    step = _number("SLURM_STEP_ID", "SLURM_STEPID")
    return None if step is None or step >= _FIRST_SPECIAL_STEP else step


def _is_typed() -> bool:
    """Whether a person typed this command in a shell that is a task of a SLURM step.

    Such a step (``srun --pty zsh``) is known by its pseudo-terminal or by its job's name. A step
    that is started from that shell inherits both; there the task is this process itself, or a
    script without a terminal.
    """
    name = os.environ.get("SLURM_JOB_NAME", "").rpartition("/")[2].lstrip("-").lower()
    if not ("SLURM_PTY_PORT" in os.environ or name in _SHELLS or "interact" in name):
        return False
    task, pid = _number("SLURM_TASK_PID"), os.getpid()
    if pid == task:
        return False
    while pid > 1 and task is not None:
        found = _parent_and_terminal(pid)
        if found is None:
            break
        if pid == task:
            return found[1]
        pid = found[0]
    return True


def _parent_and_terminal(pid: int) -> tuple[int, bool] | None:
    """A process's parent, and whether it has a terminal; ``None`` where that can't be read."""
    try:
        # Behind the program's name, in which there may be anything: state, parent, group,
        # session, terminal.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[1]), fields[4] != "0"
    except (OSError, ValueError, IndexError):
        return None


def _take_out(names: list[str]) -> None:
    _ignored.extend(_setting(name) for name in names)
    for name in names:
        del os.environ[name]


def _setting(name: str) -> str:
    return f"{name}={os.environ[name]}"


def _number(*names: str) -> int | None:
    """The value of the first of these variables that holds a whole number, not negative."""
    for name in names:
        value = os.environ.get(name, "")
        if value.isascii() and value.isdigit():
            return int(value)
    return None
