"""Filling a store of latents, or a part of it, by one process or by several ranks."""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.data.encoding import UNDECODABLE, encode_shards
from tinyfusion.data.imagefolder import ImageFolder
from tinyfusion.data.latent_plan import INDEX_FILE, StorePlan
from tinyfusion.data.latent_writer import begin, finish, is_complete, remove_torn
from tinyfusion.errors import InputError, refused_by_system
from tinyfusion.files import try_lock
from tinyfusion.group import ALONE, Group
from tinyfusion.notices import tally
from tinyfusion.text import readable_bytes

log = logging.getLogger(__name__)


def fill_store(
    images: ImageFolder,
    autoencoder: Autoencoder,
    plan: StorePlan,
    root: Path,
    device: torch.device,
    part: int = 0,
    parts: int = 1,
    group: Group = ALONE,
    skip_undecodable: bool = False,
    decoders: int = 1,
    started: Callable[[int], Callable[[float], None]] | None = None,
) -> None:
    """Encode what is missing of a part of a store; whoever completes it writes its index.

    Which rank of which part encodes which shard is settled beforehand: nobody has to ask anybody.

    Args:
        images: the image folder.
        autoencoder: encodes.
        plan: what the store will hold, see `data.encoding.plan_store`.
        root: folder of the store.
        device: where this rank encodes.
        part: which part this is, 0..parts-1.
        parts: into how many parts machines or jobs that know nothing of each other share it.
        group: ranks that share this part.
        skip_undecodable: leave out images that can't be decoded.
        decoders: threads that decode images.
        started: called on the first rank when there is anything to encode, with the number of
            images; gives what is called with the number that all ranks have encoded.

    Raises:
        InputError: a store of something else, one that another process works on or that can't be
            written, too little room or memory, or what `data.encoding.encode_shards` refuses.
        RanksFailedError: another rank has failed; finished shards are kept.
    """
    group.from_first(lambda: begin(root, plan))
    own = range(plan.num_shards)[part::parts]
    with _claimed(root, part, parts, group):

        def look() -> list[int]:
            missing = _missing(root, plan)
            remove_torn(root, own, alone=parts == 1)
            if missing:
                _check_space(root, plan, missing)
            return missing

        missing = set(group.from_first(look))
        show = None
        if missing and group.first and started is not None:
            show = started(sum(len(plan.files_of(shard)) for shard in missing.intersection(own)))
        with group.counting(show) as count, _refusing(root, plan, autoencoder.batch_size):
            mine = [shard for shard in group.share(own) if shard in missing]
            if mine:
                encode_shards(
                    *(images, autoencoder.to(device), plan, root, mine),
                    *(skip_undecodable, decoders, count),
                )
        if group.first:
            _conclude(root, plan, f"part {part} of {parts}")
    if group.first:
        (root / _lock_name(part, parts)).unlink(missing_ok=True)


def _missing(root: Path, plan: StorePlan) -> list[int]:
    """Numbers of the shards that are not complete."""
    return [shard for shard in range(plan.num_shards) if not is_complete(root, plan, shard)]


def _check_space(root: Path, plan: StorePlan, missing: Collection[int]) -> None:
    need = plan.bytes_of(sum(len(plan.files_of(shard)) for shard in missing))
    free = shutil.disk_usage(root).free
    if need > free:
        raise InputError(
            f"store={root}: {readable_bytes(need)} are still to be written, but only "
            f"{readable_bytes(free)} are free there"
        )


@contextmanager
def _refusing(root: Path, plan: StorePlan, batch_size: int) -> Iterator[None]:
    """Raise what the user can mend as an `InputError`."""
    try:
        yield
    except OSError as error:
        missing = _missing(root, plan)
        images = plan.num_files - sum(len(plan.files_of(shard)) for shard in missing)
        done = plan.num_shards - len(missing)
        raise InputError(
            f"store={root} can't be written: {error.strerror or error}; {images:,} of "
            f"{plan.num_files:,} images are stored ({done} of {plan.num_shards} shards). Make room "
            "and start the same command again: it resumes from there"
        ) from None
    except torch.OutOfMemoryError:
        raise InputError(
            f"autoencoder.batch_size={batch_size} needs more memory than the device has; choose a "
            "smaller one and start again: finished shards are kept"
        ) from None


# -- who works on it ---------------------------------------------------------------------------


def _lock_name(part: int, parts: int) -> str:
    return f".part-{part}-of-{parts}.lock"


@contextmanager
def _claimed(root: Path, part: int, parts: int, group: Group) -> Iterator[None]:
    """Hold a part of the store for these ranks; the lock ends with the last of their processes."""
    try:
        handle = open(root / _lock_name(part, parts), "a")
    except OSError as error:
        raise InputError(f"store= can't be written: {refused_by_system(error)}") from None
    taken = InputError(
        f"store={root}: another process is encoding part={part} parts={parts}; wait for it, or "
        "divide the work by part= and parts="
    )
    with handle:

        def claim() -> None:
            # First for it alone, to see that nobody else is here, then together with the others.
            for how in (fcntl.LOCK_EX, fcntl.LOCK_SH):
                if not try_lock(handle, how):
                    raise taken

        group.from_first(claim)
        if not group.first and not try_lock(handle, fcntl.LOCK_SH):
            raise taken
        # Before any of them may be killed with the lock in its hands alone.
        group.barrier()
        yield


def _conclude(root: Path, plan: StorePlan, part: str) -> None:
    """Write the index if nothing is missing; say what was skipped."""
    missing = _missing(root, plan)
    if missing:
        log.info(
            "encode: %s is done; other parts still have to write %d of %d shards, and who writes "
            "the last one writes %s",
            part,
            len(missing),
            plan.num_shards,
            INDEX_FILE,
        )
        return
    try:
        index = finish(root, plan)
    except OSError as error:
        raise InputError(
            f"store={root} can't be written: {error.strerror}; all shards are stored. Make room "
            "and start the same command again"
        ) from None
    skipped = index["skipped"]
    if not index["count"]:
        raise InputError(f"store={root}: none of {plan.num_files:,} images could be decoded")
    for entry in skipped:  # also by other processes, or before this one was started
        file = entry["file"]
        tally(UNDECODABLE, detail=f"{file}: {entry['reason']}", item=file)
    if skipped:
        count, where = f"{len(skipped):,}", root / INDEX_FILE
        log.warning("encode: left out %s image(s) that can't be decoded, see %s", count, where)
    log.info("encode: %s latents in %s", f"{index['count']:,}", root)
