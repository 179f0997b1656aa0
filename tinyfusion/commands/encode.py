"""`tinyfusion encode`: turn an image folder into latents, by as many processes as are started."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from omegaconf import DictConfig

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.data.encoding import SKIP, plan_store
from tinyfusion.data.imagefolder import ImageFolder
from tinyfusion.data.latent_plan import StorePlan
from tinyfusion.data.pictures import UndecodableImageError
from tinyfusion.errors import InputError
from tinyfusion.files import write_json
from tinyfusion.group import joined
from tinyfusion.notices import Event, alike, captured, replay
from tinyfusion.pipeline.encoding import fill_store
from tinyfusion.progress import Progress
from tinyfusion.ranks import local_rank, world_size
from tinyfusion.settings.compose import build, locate, plain
from tinyfusion.text import readable_bytes
from tinyfusion.training.settings import TrainerSettings

log = logging.getLogger(__name__)

STORE_FILE = "store.json"
"""In the run's folder: where the store is."""


def main(cfg: DictConfig, folder: Path) -> None:
    """Encode this process's share of the images; whoever completes the store writes its index."""
    if not cfg.store:
        raise InputError("store= must be given: the folder that the latents are written to")
    root = Path(cfg.store)
    part, parts = _part(cfg)
    trainer: TrainerSettings = build(cfg.trainer)
    device = _device(trainer)
    group = joined(workers(cfg))
    autoencoder = _autoencoder(cfg)

    def planned() -> tuple[ImageFolder, StorePlan, list[Event]]:
        with captured() as events:
            images = _images(cfg)
        plan = plan_store(images, autoencoder, cfg.moments, cfg.mirrors, cfg.shard_size)
        return images, plan, events

    # Listing a million files once is enough.
    images, plan, events = group.from_first(planned)
    with alike():
        replay(events)
    _announce(plan, root, str(images.root))
    with ExitStack() as stack:

        def started(total: int) -> Callable[[float], None]:
            write_json(folder / STORE_FILE, {"store": str(root)})
            bar = trainer.progress and sys.stdout.isatty()
            return stack.enter_context(Progress("encode", total, bar=bar)).reach

        fill_store(
            images,
            autoencoder,
            plan,
            root,
            device,
            part,
            parts,
            group,
            cfg.skip_undecodable,
            max(1, trainer.num_workers),
            started,
        )


def workers(cfg: DictConfig) -> int:
    """Number of processes that share this part of the work.

    Raises:
        InputError: less than one, or a device that is not there.
    """
    trainer: TrainerSettings = build(cfg.trainer)
    gpus, asked = _gpus(trainer), cfg.workers
    if asked is not None and asked < 1:
        raise InputError(f"workers={asked} must be at least 1")
    default = trainer.devices if trainer.devices > 0 else max(1, gpus)
    return world_size() or asked or default


# -- what is asked for -------------------------------------------------------------------------


def _part(cfg: DictConfig) -> tuple[int, int]:
    if cfg.parts < 1 or not 0 <= cfg.part < cfg.parts:
        raise InputError(
            f"part={cfg.part} parts={cfg.parts}: valid are part=0 to parts - 1, such as part=0 "
            "parts=2 and part=1 parts=2 on two machines"
        )
    return cfg.part, cfg.parts


def _gpus(trainer: TrainerSettings) -> int:
    """Number of GPUs to use; 0 for a processor.

    Raises:
        InputError: another kind of device, or one that is not there.
    """
    gpus = torch.cuda.device_count() if trainer.accelerator != "cpu" else 0
    if trainer.accelerator not in ("cpu", "gpu", "cuda", "auto"):
        raise InputError(f"trainer.accelerator={trainer.accelerator}: valid are cpu, gpu and auto")
    if trainer.accelerator in ("gpu", "cuda") and not gpus:
        raise InputError(f"trainer.accelerator={trainer.accelerator}: this machine has no GPU")
    return gpus


def _device(trainer: TrainerSettings) -> torch.device:
    """Where this process encodes; several may share a GPU."""
    gpus = _gpus(trainer)
    return torch.device("cuda", local_rank() % gpus) if gpus else torch.device("cpu")


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
    try:
        return build({**plain(cfg.data), **own})
    except UndecodableImageError as error:
        raise InputError(f"{error}; {SKIP}") from None


def _announce(plan: StorePlan, root: Path, source: str) -> None:
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
