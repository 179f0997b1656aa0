"""Which process of a run this is, by the names of torchrun, SLURM and Lightning."""

from __future__ import annotations

import pytest

from tinyfusion import ranks
from tinyfusion.errors import InputError

NAMES = (
    "RANK LOCAL_RANK WORLD_SIZE NODE_RANK GROUP_RANK MASTER_ADDR TORCHELASTIC_RUN_ID SLURM_NTASKS "
    "SLURM_PROCID SLURM_STEP_ID SLURM_STEPID SLURM_JOB_ID SLURM_JOB_NAME"
).split()
SRUN = {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "2", "SLURM_JOB_ID": "71", "SLURM_JOB_NAME": "job"}


@pytest.fixture
def environment(monkeypatch):
    """``environment(NAME=value, ...)``: these variables and no other rank's."""

    def set_to(**values: str) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    set_to()
    return set_to


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "3"}, True),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"GROUP_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "MASTER_ADDR": "a"}, True),
        ({"NODE_RANK": "1", "MASTER_ADDR": "a"}, False),
        ({"SLURM_PROCID": "1"}, False),
    ],
)
def test_the_first_rank_is_known_by_the_environment(environment, values, first) -> None:
    environment(**values)
    assert ranks.is_first_rank() is first


def test_what_counts_as_a_rank(environment) -> None:
    assert not ranks.is_rank()
    environment(LOCAL_RANK="0")
    assert ranks.is_rank()
    environment(**SRUN, SLURM_PROCID="0")
    assert ranks.is_rank() and ranks.is_slurm_rank()
    # One task that may use several GPUs, a batch script itself, and a person's shell.
    environment(**SRUN | {"SLURM_NTASKS": "1"}, SLURM_PROCID="0")
    assert not ranks.is_rank()
    environment(SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_JOB_ID="71")
    assert not ranks.is_rank()
    environment(**SRUN | {"SLURM_JOB_NAME": "bash"}, SLURM_PROCID="0")
    assert not ranks.is_rank()


def test_ranks_that_start_apart_share_a_folder_or_are_asked_for_one(environment) -> None:
    assert ranks.shared_stamp("now") == "now"
    names = set()
    for number in "0123":
        environment(**SRUN, SLURM_PROCID=number)
        names.add(ranks.shared_stamp(f"time of {number}"))
    assert names == {"slurm-71.2"}
    for values in ({"LOCAL_RANK": "0"}, {"NODE_RANK": "0", "MASTER_ADDR": "a"}):
        environment(**values)
        with pytest.raises(InputError, match=r"hydra\.run\.dir=FOLDER"):
            ranks.shared_stamp("now")
