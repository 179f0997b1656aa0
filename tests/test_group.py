"""Ranks that wait for, tell and count with each other; here real processes."""

from __future__ import annotations

import os
import re
import time

import pytest
import torch
import torch.distributed as dist

from tinyfusion.errors import InputError, RanksFailedError
from tinyfusion.group import ALONE, current, joined


def test_one_process_is_a_group_of_its_own() -> None:
    assert current() is joined() is joined(1) is ALONE
    assert (ALONE.rank, ALONE.size, ALONE.first) == (0, 1, True)
    rows = torch.arange(3)
    assert ALONE.gather_rows(rows) == [rows] and ALONE.gather_objects("a") == ["a"]
    assert ALONE.broadcast_object("a") == "a" and torch.equal(ALONE.all_reduce(rows), rows)
    assert ALONE.share("abc") == "abc"
    with pytest.raises(InputError, match="no such"):
        ALONE.from_first(lambda: refused("no such"))
    shown: list[int] = []
    with ALONE.counting(shown.append) as count:
        count(2)
        count(0)
        count(3)
    assert shown == [2, 5]


def refused(why: str) -> None:
    raise InputError(why)


def test_a_rank_that_can_not_know_where_to_meet_is_refused(monkeypatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="several ranks, but MASTER_ADDR do"):
        joined()


def test_what_ranks_tell_each_other(on_ranks) -> None:
    def work() -> dict[str, object]:
        group = joined()
        assert group is current() is joined(3)
        # One of them has nothing, as one may of few images.
        rows = torch.full((group.rank, 2), group.rank, dtype=torch.float64)
        own = {"rank": group.rank, "size": group.size, "share": group.share("abcde")}
        refusal = None
        try:
            group.from_first(lambda: refused("only the first knows"))
        except InputError as error:
            refusal = str(error)
        return own | {
            "rows": group.gather_rows(rows),
            "objects": group.gather_objects(group.rank),
            "broadcast": group.broadcast_object(group.rank + 7),
            "sum": group.all_reduce(torch.tensor([1.0, group.rank])),
            "made": group.from_first(lambda: os.getpid()),
            "refusal": refusal,
        }

    found = on_ranks(3, work)
    assert [f["rank"] for f in found] == [0, 1, 2] and {f["size"] for f in found} == {3}
    assert [f["share"] for f in found] == ["ad", "be", "c"]
    first, *others = [f["rows"] for f in found]
    assert torch.cat(first).tolist() == [[1, 1], [2, 2], [2, 2]]
    assert first[0].dtype == torch.float64
    assert [len(rows) for (rows,) in others] == [1, 2]
    for each in found:
        assert each["objects"] == [0, 1, 2] and each["broadcast"] == 7
        assert each["sum"].tolist() == [3.0, 3.0]
        assert each["made"] == found[0]["made"]
        assert each["refusal"] == "only the first knows"


def test_the_group_that_something_else_made_is_taken(on_ranks) -> None:
    def work() -> list[int]:
        dist.init_process_group("gloo")
        return current().gather_objects(joined().rank)

    assert on_ranks(2, work) == [[0, 1], [0, 1]]


def test_work_is_counted_over_all_ranks(on_ranks) -> None:
    def work() -> tuple[list[int], float]:
        group, shown = joined(), []
        for amounts in ([1, 2], [3]):  # one count after the other
            with group.counting(shown.append) as count:
                for amount in amounts:
                    time.sleep(0.3 * group.rank)
                    count(amount)
            ended = time.monotonic()
        return shown, ended

    first, second, third = on_ranks(3, work)
    assert first[0][-1] == 9 and 9 in first[0][:-1]
    sums = [first[0][: first[0].index(9) + 1], first[0][first[0].index(9) + 1 :]]
    assert all(part == sorted(set(part)) for part in sums)
    assert len(sums[0]) > 1  # as it grew
    assert second[0] == third[0] == []
    # All left together, the slowest one having worked for a second.
    assert max(f[1] for f in (first, second, third)) - min(f[1] for f in (first, second)) < 0.3


@pytest.mark.parametrize("dies", [False, True])
def test_a_rank_that_fails_is_not_waited_for(on_ranks, tmp_path, dies: bool) -> None:
    def work() -> tuple[str, float]:
        group, began = joined(), time.monotonic()
        try:
            with group.counting() as count:
                if group.rank == 1:
                    time.sleep(0.5)
                    if not dies:
                        raise ZeroDivisionError
                    torch.save(None, tmp_path / "rank1.pt")
                    os._exit(0)  # as if killed: it tells nobody
                # The first one waits; of three, one has long to go.
                for _ in range(600 if group.rank == 2 else 0):
                    count(1)
                    time.sleep(0.1)
        except ZeroDivisionError:
            return "own", 0.0
        except RanksFailedError as error:
            return str(error), time.monotonic() - began
        raise AssertionError("nothing was noticed")

    first, own, *others = on_ranks(2 if dies else 3, work)
    assert own is None if dies else own[0] == "own"
    for message, seconds in (first, *others):
        assert re.search(r"rank( 1)? of this run has failed", message) and seconds < 5


def test_ranks_of_srun_meet_without_being_told_where(on_ranks) -> None:
    def work() -> list[int]:
        number = os.environ["RANK"]
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
        os.environ |= {"SLURM_PROCID": number, "SLURM_LOCALID": number, "SLURM_NTASKS": "2"}
        os.environ |= {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "8731", "SLURM_JOB_NAME": "job"}
        os.environ |= {"SLURM_NODELIST": "127.0.0.1"}
        return joined().gather_objects(int(number))

    assert on_ranks(2, work) == [[0, 1], [0, 1]]
