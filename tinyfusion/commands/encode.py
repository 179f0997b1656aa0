"""`tinyfusion encode`: turn an image folder into latents, by as many processes as are started."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.commands.encode_jobs import Job, run_jobs
from tinyfusion.data.encoding import plan_store
from tinyfusion.data.imagefolder import ImageFolder
from tinyfusion.data.latent_plan import INDEX_FILE, Plan
from tinyfusion.data.latent_writer import begin, finish, is_complete, remove_torn
from tinyfusion.errors import InputError
from tinyfusion.files import write_json
from tinyfusion.progress import Progress
from tinyfusion.settings.compose import build, locate
from tinyfusion.text import readable_bytes
from tinyfusion.training.settings import TrainerSettings

log = logging.getLogger(__name__)

STORE_FILE = "store.json"
"""In the run's folder: where the store is."""

SHOWN = 10
"""So many of the skipped images are listed; all are in the index."""


def main(cfg: DictConfig, folder: Path) -> None:
    """Encode this process's part of the images; whoever completes the store writes its index."""
    if not cfg.store:
        raise InputError("store= must be given: the folder that the latents are written to")
    root = Path(cfg.store)
    part, parts = _part(cfg)
    trainer: TrainerSettings = build(cfg.trainer)
    devices = _devices(trainer, cfg.workers)
    autoencoder = _autoencoder(cfg)
    images = _images(cfg)
    plan = plan_store(images, autoencoder, cfg.moments, cfg.mirrors, cfg.shard_size)
    _announce(plan, root, str(images.root))
    begin(root, plan)
    with _claimed(root, part, parts):
        missing = {s for s in range(plan.num_shards) if not is_complete(root, plan, s)}
        # Which process does which shard is settled beforehand: nobody has to ask anybody.
        first, step = part * len(devices), parts * len(devices)
        shares = [range(plan.num_shards)[first + w :: step] for w in range(len(devices))]
        remove_torn(root, [shard for share in shares for shard in share], alone=parts == 1)
        if missing:
            _check_space(root, plan, missing)
            write_json(folder / STORE_FILE, {"store": str(root)})
            jobs = [
                Job(
                    images=images,
                    autoencoder=autoencoder,
                    plan=plan,
                    root=root,
                    shards=[shard for shard in share if shard in missing],
                    skip_undecodable=cfg.skip_undecodable,
                    decoders=max(1, trainer.num_workers),
                    device=device,
                    threads=_threads(trainer, devices),
                )
                for share, device in zip(shares, devices, strict=True)
            ]
            total = sum(len(plan.files_of(s)) for job in jobs for s in job.shards)
            bar = trainer.progress and sys.stdout.isatty()
            with Progress("encode", total, bar=bar) as progress:
                run_jobs(jobs, progress)
        _conclude(root, plan, f"part {part} of {parts}")
    (root / _lock_name(part, parts)).unlink(missing_ok=True)


# -- what is asked for -------------------------------------------------------------------------


def _part(cfg: DictConfig) -> tuple[int, int]:
    if cfg.parts < 1 or not 0 <= cfg.part < cfg.parts:
        raise InputError(
            f"part={cfg.part} parts={cfg.parts}: valid are part=0 to parts - 1, such as part=0 "
            "parts=2 and part=1 parts=2 on two machines"
        )
    return cfg.part, cfg.parts


def _devices(trainer: TrainerSettings, workers: int | None) -> list[torch.device]:
    """One device per process; several processes may share one."""
    gpus = torch.cuda.device_count() if trainer.accelerator != "cpu" else 0
    if trainer.accelerator not in ("cpu", "gpu", "cuda", "auto"):
        raise InputError(f"trainer.accelerator={trainer.accelerator}: valid are cpu, gpu and auto")
    if trainer.accelerator in ("gpu", "cuda") and not gpus:
        raise InputError(f"trainer.accelerator={trainer.accelerator}: this machine has no GPU")
    if workers is None:
        workers = trainer.devices if trainer.devices > 0 else max(1, gpus)
    if workers < 1:
        raise InputError(f"workers={workers} must be at least 1")
    if not gpus:
        return [torch.device("cpu")] * workers
    return [torch.device("cuda", worker % gpus) for worker in range(workers)]


def _threads(trainer: TrainerSettings, devices: Sequence[torch.device]) -> int | None:
    """Threads of torch in each process; ``None`` for its own choice."""
    if trainer.threads or len(devices) == 1:
        return trainer.threads
    return max(1, (os.cpu_count() or 1) // len(devices))


def _autoencoder(cfg: DictConfig) -> Autoencoder:
    autoencoder = None if cfg.autoencoder is None else build(cfg.autoencoder)
    if not isinstance(autoencoder, Autoencoder):
        raise InputError("autoencoder= must be given, such as autoencoder=sd_vae_ft_ema")
    return autoencoder


def _images(cfg: DictConfig) -> ImageFolder:
    """The image folder, nothing of it held out."""
    kind = locate(cfg.data["_target_"], "data")
    if not (isinstance(kind, type) and issubclass(kind, ImageFolder)):
        raise InputError("data: images are encoded from a folder; give data=imagefolder")
    # How images are held out and mirrored is for the reader of the latents to say.
    own = {"held_out": 0, "flip": False, "probe": not cfg.skip_undecodable}
    return build({**OmegaConf.to_container(cfg.data), **own})


def _announce(plan: Plan, root: Path, source: str) -> None:
    size = readable_bytes(plan.num_files * plan.row_bytes)
    shape = "x".join(map(str, (plan.channels, plan.size, plan.size)))
    log.info(
        "encode: %s images of %d classes in %s, cropped to %d pixels -> latents of %s",
        f"{plan.num_files:,}",
        len(plan.classes),
        source,
        plan.image_size,
        shape,
    )
    log.info(
        "encode: %s: %s in float16, %d shard(s), %s for the images%s",
        root,
        "posterior means and log-variances" if plan.kind == "moments" else "posterior means",
        plan.num_shards,
        size,
        f" and {size} for their mirrors" if plan.mirrors else "",
    )


def _check_space(root: Path, plan: Plan, missing: Collection[int]) -> None:
    need = plan.bytes_of(sum(len(plan.files_of(shard)) for shard in missing))
    free = shutil.disk_usage(root).free
    if need > free:
        raise InputError(
            f"store={root}: {readable_bytes(need)} are still to be written, but only "
            f"{readable_bytes(free)} are free there"
        )


def _lock_name(part: int, parts: int) -> str:
    return f".part-{part}-of-{parts}.lock"


@contextmanager
def _claimed(root: Path, part: int, parts: int) -> Iterator[None]:
    """Hold a part of the store for this process; the lock ends with the process."""
    try:
        handle = open(root / _lock_name(part, parts), "w")
    except OSError as error:
        raise InputError(f"store={root} can't be written: {error.strerror}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"store={root}: another process is encoding part={part} parts={parts}; wait for "
                "it, or divide the work by part= and parts="
            ) from None
        except OSError as error:
            # Some network file systems have no locks; two processes would write the same bytes.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield


def _conclude(root: Path, plan: Plan, part: str) -> None:
    """Write the index if nothing is missing; say what was skipped."""
    missing = [s for s in range(plan.num_shards) if not is_complete(root, plan, s)]
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
    if skipped:
        log.warning("encode: left out %s image(s) that can't be decoded:", f"{len(skipped):,}")
        for entry in skipped[:SHOWN]:
            log.warning("  %s: %s", entry["file"], entry["reason"])
        if len(skipped) > SHOWN:
            log.warning("  ... all are listed in %s", root / INDEX_FILE)
    log.info("encode: %s latents in %s", f"{index['count']:,}", root)
