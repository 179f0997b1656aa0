"""The ranks of a run as one group: they wait for each other, share values and count together.

A rank is one of several processes that were started together (see `tinyfusion.ranks`). Whatever
shares work out takes a `Group`, which by default is this process alone. Several ranks talk through
torch.distributed: through the process group that Lightning made for training, or one made here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from tinyfusion.errors import InputError, RanksFailedError, first_line
from tinyfusion.ranks import is_rank, is_slurm_rank, rank, slurm_meeting_point, world_size

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long ranks wait for each other: one may write files for hours while the others wait. A rank
that has died is noticed at once, as its connections close."""

_EVERY = 0.2
"""Seconds between two looks at what the other ranks have counted."""


class Group:
    """This process alone; several ranks are a `ProcessGroup`, which does the same for all of them.

    Attributes:
        rank: number of this process, 0..size-1.
        size: number of processes.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, logs and computes what is not shared out."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share of some work: every ``size``-th item."""
        return items[self.rank :: self.size]

    def barrier(self) -> None:
        """Wait until all ranks have reached this call.

        Raises:
            RanksFailedError: another rank has failed; so do all methods that need the others.
        """

    def broadcast_object(self, value: T) -> T:
        """The first rank's ``value``, on every rank; it must be possible to pickle it."""
        return value

    def gather_objects(self, value: T) -> list[T]:
        """The values of all ranks in their order, on every rank."""
        return [value]

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """The tensors of all ranks in their order, on the first rank; elsewhere the own one alone.

        Args:
            rows: on the CPU; its shape may differ from rank to rank.
        """
        return [rows]

    def all_reduce(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on every rank; on the device of ``value``."""
        return value

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the first rank, on every rank.

        Raises:
            InputError: what ``make`` refuses; raised by every rank.
        """
        return make()

    @contextmanager
    def counting(
        self, show: Callable[[int], None] | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Count work over all ranks while each does its share; leaving waits for all of them.

        Args:
            show: called on the first rank with the sum, as it grows.

        Yields:
            What to call with the amounts that this rank has done.

        Raises:
            RanksFailedError: another rank has failed; raised while counting or waiting.
        """
        total = 0

        def count(amount: int) -> None:
            nonlocal total
            total += amount
            if amount and show is not None:
                show(total)

        yield count


ALONE = Group()
"""The group of one process."""


class ProcessGroup(Group):
    """All ranks of torch.distributed's process group, which talk through their CPUs.

    Made by all ranks at the same point.
    """

    def __init__(self) -> None:
        self.world = dist.group.WORLD
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._store = dist.distributed_c10d._get_default_store()
        self._counts = 0
        # A group of its own: training on GPUs has one that only moves what is on GPUs.
        with _reaching():
            # Of all ranks, so that none is told that it is no member.
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))

    def barrier(self, meanwhile: Callable[[], None] | None = None) -> None:
        """See `Group.barrier`.

        Args:
            meanwhile: called again and again while waiting.
        """
        with _reaching():
            if meanwhile is None:
                dist.barrier(group=self._group)
                return
            waiting = dist.barrier(group=self._group, async_op=True)
            while not waiting.is_completed():
                meanwhile()
                time.sleep(_EVERY / 4)
            waiting.wait()

    def broadcast_object(self, value: T) -> T:
        """See `Group.broadcast_object`."""
        values: list[Any] = [value if self.first else None]
        with _reaching():
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def gather_objects(self, value: T) -> list[T]:
        """See `Group.gather_objects`."""
        values: list[Any] = [None] * self.size
        with _reaching():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """See `Group.gather_rows`."""
        kinds = self.gather_objects((tuple(rows.shape), rows.dtype))
        with _reaching():
            if not self.first:
                if rows.numel():
                    dist.send(rows.contiguous(), dst=0, group=self._group)
                return [rows]
            found = [rows]
            for source, (shape, dtype) in list(enumerate(kinds))[1:]:
                found.append(torch.empty(shape, dtype=dtype))
                if found[-1].numel():
                    dist.recv(found[-1], src=source, group=self._group)
            return found

    def all_reduce(self, value: Tensor) -> Tensor:
        """See `Group.all_reduce`."""
        total = value.detach().cpu().clone()
        with _reaching():
            dist.all_reduce(total, group=self._group)
        return total.to(value.device)

    def from_first(self, make: Callable[[], T]) -> T:
        """See `Group.from_first`."""
        made: Any = None
        refusal: InputError | None = None
        if self.first:
            try:
                made = make()
            except InputError as error:
                refusal = error
        made, message = self.broadcast_object((made, refusal and str(refusal)))
        if message is not None:
            raise refusal or InputError(message)
        return made

    @contextmanager
    def counting(
        self, show: Callable[[int], None] | None = None
    ) -> Iterator[Callable[[int], None]]:
        """See `Group.counting`."""
        self._counts += 1
        store = dist.PrefixStore(f"tinyfusion/{self._counts}", self._store)
        tally = _Tally(store, self.rank, show if self.first else None)
        try:
            yield tally.add
            tally.look()
            self.barrier(meanwhile=tally.look)
            if self.first:  # which keeps the store: it may be gone before the others look
                tally.look()
        except RanksFailedError:
            raise
        except BaseException:
            tally.fail()
            raise


class _Tally:
    """A sum over the ranks, kept in the store that they share.

    Args:
        store: the store; of this sum alone.
        rank: number of this rank.
        show: called with the sum as it grows.
    """

    def __init__(self, store: dist.Store, rank: int, show: Callable[[int], None] | None) -> None:
        self._store, self._rank, self._show = store, rank, show
        self._unsent = self._reported = 0
        self._looked = 0.0

    def add(self, amount: int) -> None:
        self._unsent += amount
        if time.monotonic() - self._looked >= _EVERY:
            self.look()

    def look(self) -> None:
        """Tell the others what was added, and look at what they have done."""
        with _reaching():
            total = self._store.add("done", self._unsent)
            failed = self._store.check(["failed"])
        self._unsent, self._looked = 0, time.monotonic()
        if failed:
            with _reaching():
                number = self._store.get("failed").decode()
            raise RanksFailedError(f"rank {number} of this run has failed")
        if self._show is not None and total > self._reported:
            self._reported = total
            self._show(total)

    def fail(self) -> None:
        """Have the other ranks fail at their next look."""
        with suppress(RuntimeError):
            self._store.set("failed", str(self._rank))


def current() -> Group:
    """The ranks that this process has met, by `joined` or under Lightning; or itself alone.

    All ranks call it at the same point when they do so for the first time.
    """
    global _current
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    if _current is None or _current.world is not dist.group.WORLD:
        _current = ProcessGroup()
    return _current


_current: ProcessGroup | None = None


def joined(size: int | None = None, cuda: bool = False) -> Group:
    """Meet the other ranks, if this process is one of several.

    Args:
        size: number of ranks if the environment that they were started in does not hold it.
        cuda: whether they are also going to train on GPUs.

    Raises:
        InputError: the environment does not hold the address and port where the ranks meet.
        RanksFailedError: not all ranks connected.
    """
    size = world_size() or size or 1
    if size > 1 and is_rank() and not dist.is_initialized():
        set_meeting_point()
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        with _reaching():
            dist.init_process_group(backend, rank=rank(), world_size=size, timeout=PATIENCE)
    return current()


def set_meeting_point() -> None:
    """Set ``MASTER_ADDR`` and ``MASTER_PORT`` of a SLURM step, unless whoever started it has.

    Raises:
        InputError: they are not set, and this process is a rank of something else than SLURM.
    """
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing and is_slurm_rank():
        address, port = slurm_meeting_point()
        os.environ["MASTER_ADDR"] = os.environ.get("MASTER_ADDR") or address
        os.environ["MASTER_PORT"] = os.environ.get("MASTER_PORT") or str(port)
    elif missing:
        raise InputError(
            f"this process is one of several ranks, but {' and '.join(missing)} do(es) not say "
            "where they meet; start them by torchrun or srun, or leave it to trainer.devices=N"
        )


@contextmanager
def _reaching() -> Iterator[None]:
    """Turn the errors of torch.distributed about a rank that is gone into one line."""
    try:
        yield
    except RanksFailedError:
        raise
    except RuntimeError as error:
        raise RanksFailedError(
            f"another rank of this run has failed ({first_line(error)})"
        ) from error
