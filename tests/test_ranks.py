"""Which process of a run this is, by the variables of launchers; and what others left over."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tinyfusion import ranks
from tinyfusion.errors import InputError

NAMES = (
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK MASTER_ADDR MASTER_PORT "
    "TORCHELASTIC_RUN_ID SLURM_NTASKS SLURM_PROCID SLURM_LOCALID SLURM_STEP_ID SLURM_STEPID "
    "SLURM_STEP_NUM_TASKS SLURM_JOB_ID SLURM_JOB_NAME SLURM_PTY_PORT SLURM_TASK_PID "
    "SLURM_NODELIST PMI_RANK PMI_SIZE MPI_LOCALRANKID JSM_NAMESPACE_RANK JSM_NAMESPACE_SIZE "
    "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK MV2_COMM_WORLD_RANK"
).split()
ALLOCATION = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "71", "SLURM_JOB_NAME": "job"}
BATCH = ALLOCATION | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TASK = ALLOCATION | {"SLURM_STEP_ID": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "a"}
SHELL = BATCH | {"SLURM_STEP_ID": "0"}
ZSH = SHELL | {"SLURM_JOB_NAME": "zsh"}


@pytest.fixture
def environment(monkeypatch) -> Callable[..., None]:
    """``environment(NAME=value, ...)``: these variables and no other rank's."""

    def set_to(**values: str) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    set_to()
    return set_to


@pytest.mark.parametrize(
    ("values", "number", "size", "local"),
    [
        (TORCHRUN, 5, 8, 1),
        ({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "a"}, 0, 1, 0),
        # One per machine, as Kubeflow starts them.
        ({"RANK": "1", "WORLD_SIZE": "2"}, 1, 2, 1),
        (TASK, 3, 4, 1),
        (TASK | {"SLURM_STEP_NUM_TASKS": "8"}, 3, 8, 1),
        # Launchers that were started within an allocation.
        (BATCH | TORCHRUN, 5, 8, 1),
        (TASK | TORCHRUN, 5, 8, 1),
        (TASK | {"OMPI_COMM_WORLD_RANK": "6", "OMPI_COMM_WORLD_SIZE": "8"}, 6, 8, 6),
        (TASK | {"RANK": "1"}, 3, 4, 1),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 1, 2, 1),
        ({"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"}, 1, 2, 1),
        (ZSH | {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}, 1, 2, 0),
    ],
)
def test_a_number_and_a_count_make_a_rank(environment, values, number, size, local) -> None:
    environment(**values)
    assert ranks.is_rank()
    assert (ranks.rank(), ranks.world_size(), ranks.local_rank()) == (number, size, local)
    assert ranks.is_first_rank() == (number == 0)
    before = dict(os.environ)
    ranks.clear_leftovers()
    assert {name for name in before if name not in os.environ} <= {"RANK"}


ALONE = [
    {},
    {"RANK": "0", "WORLD_SIZE": "1"},
    ALLOCATION | {"SLURM_JOB_NAME": "interactive"},
    BATCH,
    BATCH | {"SLURM_STEP_ID": "4294967291"},
    TASK | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    SHELL | {"SLURM_JOB_NAME": "job", "SLURM_PTY_PORT": "40123"},
    # What srun sets for MPI programs is not set by an MPI's launcher.
    SHELL | {"SLURM_JOB_NAME": "fish", "PMI_RANK": "0", "PMI_SIZE": "4"},
    {"NODE_RANK": "0"},
]
ALONE += [
    SHELL | {"SLURM_JOB_NAME": name}
    for name in ("bash", "zsh", "/usr/bin/fish", "-tcsh", "interactive", "sinteractive", "tmux")
]


@pytest.mark.parametrize("values", ALONE)
def test_the_only_process_is_no_rank_and_nothing_is_said(environment, values, capsys) -> None:
    environment(**values)
    before = dict(os.environ)
    ranks.clear_leftovers()
    ranks.agree("devices=4", 4)
    ranks.agree("devices=1", 1)
    assert not ranks.is_rank() and ranks.is_first_rank()
    assert (ranks.rank(), ranks.world_size(), ranks.local_rank()) == (0, None, 0)
    assert dict(os.environ) == before
    assert capsys.readouterr().err == ""


def test_a_step_that_is_started_from_a_persons_shell_is_none(environment, monkeypatch) -> None:
    """It inherits the shell's job name and terminal port; its task has no terminal."""
    inherited = TASK | {"SLURM_JOB_NAME": "bash", "SLURM_PTY_PORT": "40123"}
    environment(**inherited, SLURM_TASK_PID=str(os.getpid()))
    for terminal in (False, True):  # as `srun --pty` gives its first task one
        with monkeypatch.context() as patched:
            patched.setattr(ranks, "_parent_and_terminal", lambda _, at=terminal: (1, at))
            assert ranks.is_slurm_rank()
    # A task that runs this by a script of its own, and a shell.
    environment(**inherited, SLURM_TASK_PID="7")
    for terminal in (False, True):
        above = {os.getpid(): (9, terminal), 9: (7, terminal), 7: (1, terminal)}
        monkeypatch.setattr(ranks, "_parent_and_terminal", above.get)
        assert ranks.is_slurm_rank() is not terminal


def test_parents_are_read() -> None:
    parent, terminal = ranks._parent_and_terminal(os.getpid()) or (os.getppid(), False)
    assert parent == os.getppid() and isinstance(terminal, bool)
    assert ranks._parent_and_terminal(2**30) is None


LEFT = [
    {"RANK": "1"}, {"RANK": "abc"}, {"RANK": "²"}, {"LOCAL_RANK": ""}, {"LOCAL_RANK": "0"},
    {"RANK": "5", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "0"}, {"RANK": "-1", "LOCAL_RANK": "-1"},
    {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2"}, {"SLURM_PROCID": "2"},
    {"SLURM_PROCID": "x", "SLURM_LOCALID": "1"}, {"JSM_NAMESPACE_RANK": "3"}, {"PMI_RANK": "1"},
    {"OMPI_COMM_WORLD_RANK": "1"}, {"MV2_COMM_WORLD_RANK": "a"}, {"NODE_RANK": "1"},
    {"NODE_RANK": "b", "GROUP_RANK": "1"}, {"LOCAL_RANK": "1", "NODE_RANK": "1"},
]  # fmt: skip


@pytest.mark.parametrize("values", LEFT)
def test_what_is_left_over_is_ignored_and_said(environment, values, capsys) -> None:
    environment(**values, MASTER_ADDR="a")
    ranks.clear_leftovers()
    ranks.agree("devices=1", 1)
    assert not ranks.is_rank() and ranks.is_first_rank()
    said = capsys.readouterr().err
    for name, value in values.items():
        assert name not in os.environ and f"{name}={value}" in said, name
    ranks.agree("devices=1", 1)
    assert len(said.splitlines()) == 1 and capsys.readouterr().err == ""  # said once


@pytest.mark.parametrize("values", LEFT)
def test_what_may_number_several_processes_is_not_ignored(environment, values) -> None:
    environment(**values)
    ranks.clear_leftovers()
    with pytest.raises(InputError, match=rf"trainer.devices=2: several.*{next(iter(values))}="):
        ranks.agree("trainer.devices=2", 2)


@pytest.mark.parametrize(
    ("values", "asked", "said"),
    [
        (TORCHRUN, (1, 1), "1 process(es), but 8 were started, as RANK, WORLD_SIZE, LOCAL_RANK"),
        (TORCHRUN, (9, 9), "9 process(es), but 8 were started"),
        (TASK, (1, 1), "but 4 were started, as SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID say"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, (8, 1, 8), "8 were started, 8 of them on this mach"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, (4, 4), "4 process(es), but 2 were started"),
        ({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "a"}, (2, 2), "but 1 were start"),
    ],
)
def test_other_processes_than_are_asked_for(environment, values, asked, said) -> None:
    environment(**values)
    ranks.clear_leftovers()
    with pytest.raises(InputError) as refused:
        ranks.agree("keys", *asked)
    assert said in str(refused.value)
    ranks.agree("keys", int(values.get("WORLD_SIZE", values.get("PMI_SIZE", "4"))))
    ranks.agree("", None)


def test_ranks_that_start_apart_share_a_folder_or_are_asked_for_one(environment) -> None:
    assert ranks.shared_stamp("now") == "now"
    names = set()
    for number in "0123":
        environment(**TASK | {"SLURM_PROCID": number})
        names.add(ranks.shared_stamp(f"time of {number}"))
    assert names == {"slurm-71.2"}
    for values in (TORCHRUN, {"NODE_RANK": "0", "MASTER_ADDR": "a"}):
        environment(**values)
        with pytest.raises(InputError, match=r"hydra\.run\.dir=FOLDER"):
            ranks.shared_stamp("now")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-07,11],cpu2", "gpu03"),
        ("a01,a02", "a01"),
        ("a01 a02", "a01"),
        ("rack[1-2]node[05,07]", "rack1node05"),
        ("host.domain", "host.domain"),
        ("", "127.0.0.1"),
    ],
)
def test_where_the_tasks_of_a_step_meet(environment, nodes, first) -> None:
    environment(**TASK, SLURM_NODELIST=nodes)
    address, port = ranks.slurm_meeting_point()
    assert address == first and 15000 <= port < 25000
    environment(**TASK | {"SLURM_STEP_ID": "3"}, SLURM_NODELIST=nodes)
    assert ranks.slurm_meeting_point() not in ((address, port),)  # two steps at the same time
