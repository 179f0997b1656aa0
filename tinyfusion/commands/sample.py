"""`tinyfusion sample`: draw images from a checkpoint, on one device or on many."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, compile_blocks
from tinyfusion.commands.checks import check_decoder, check_sampling
from tinyfusion.commands.draw import PACKED_FILE, Share, pack
from tinyfusion.commands.loading import load_alone, source_hash
from tinyfusion.data.open_images import SAMPLES
from tinyfusion.data.sample_store import SampleStore
from tinyfusion.errors import InputError
from tinyfusion.figures.grid import image_grid
from tinyfusion.files import read_json, write_atomic, write_json
from tinyfusion.ranks import is_first_rank, is_numbered, is_rank, rank, world_size
from tinyfusion.runtime.progress import ImageProgress
from tinyfusion.samplers.generate import Drawing, class_labels
from tinyfusion.settings.objects import Objects, objects_of

log = logging.getLogger(__name__)

LABELS_FILE, GRID_FILE, RECORD_FILE = "labels.npy", "grid.png", "sampling.json"
GRID_COLUMNS = 10


def main(cfg: DictConfig, folder: Path) -> None:
    """Fill ``samples/``; then write ``samples.npz``, the labels and ``grid.png``.

    Each rank draws its share of the batches. The first one waits for the others.
    """
    objects = objects_of(cfg)
    if not _takes_part(objects):
        return
    _check_folder(folder)
    drawing = _drawing(objects, cfg)
    store = SampleStore(
        folder / SAMPLES, cfg.n, drawing.shape, cfg.batch_size, cfg.shard_size, cfg.format
    )
    missing = store.missing()
    if is_first_rank():
        store.check_space(missing, cfg.pack)
        there = cfg.n - store.images_in(missing)
        if there:
            log.info("sample: %s of %s images are there already", f"{there:,}", f"{cfg.n:,}")
        if store.num_shards < objects.devices:
            log.warning(
                "sample: %d part(s) can't keep %d devices busy; choose a smaller batch_size%s",
                store.num_shards,
                objects.devices,
                " or shard_size" if cfg.format == "npz" else "",
            )
    _record(folder, source_hash(objects))
    drawing.net.to(objects.device)
    if objects.trainer.compile:
        compile_blocks(drawing.net, objects.trainer.compile_backend)
    # Of several ranks the first one shows what all have done.
    with ImageProgress(
        "sample", cfg.n, cfg.n - store.images_in(missing), bar=objects.bars and is_first_rank()
    ) as progress:
        share = Share(store, drawing, set(missing), progress if is_first_rank() else None)
        share.fill_all(range(rank(), store.num_shards, objects.devices))
        if not is_first_rank():
            return
        share.wait()
    _conclude(cfg, folder, store, drawing.labels)


def _takes_part(objects: Objects) -> bool:
    """Whether this process draws a share.

    Raises:
        InputError: other ranks were started than the trainer's settings speak of: the first one
            would wait for shares that nobody draws.
    """
    started = world_size()
    asked = (
        f"trainer.devices={objects.trainer.devices} trainer.num_nodes={objects.trainer.num_nodes}"
    )
    if started is not None and started != objects.devices:
        raise InputError(
            f"{asked} are {objects.devices} rank(s), but {started} were started; start as many"
        )
    if is_rank() and objects.trainer.num_nodes > 1 and not is_numbered():
        raise InputError(
            f"{asked}: the ranks are numbered on their machines only (LOCAL_RANK); start them by "
            "torchrun or srun, or one command per machine with NODE_RANK, without LOCAL_RANK"
        )
    return rank() < objects.devices


def _check_folder(folder: Path) -> None:
    """Refuse to go on with images of nobody knows what.

    Raises:
        InputError: there are some, but no record of them, which every rank writes beforehand.
    """
    images = folder / SAMPLES
    if images.is_dir() and any(images.iterdir()) and not (folder / RECORD_FILE).is_file():
        raise InputError(
            f"{images} holds files that no run of this package has made; choose another folder"
        )


def _record(folder: Path, weights: str) -> None:
    """Note whose images these will be.

    Raises:
        InputError: those that are there are of other weights.
    """
    file = folder / RECORD_FILE
    if not file.is_file():
        write_json(file, {"weights": weights})
        return
    known = read_json(file, "record of samples").get("weights", "")
    if known != weights:
        raise InputError(
            f"{folder} holds samples of other weights (SHA-256 {known[:12]}...) than those that "
            f"checkpoint= has now ({weights[:12]}...); restore them, or begin anew elsewhere"
        )


def _drawing(objects: Objects, cfg: DictConfig) -> Drawing:
    """What is to be drawn, checked."""
    net = load_alone(objects, objects.checkpoint)
    sampler, guidance = objects.sampler, objects.guidance
    assert sampler is not None
    check_sampling(net, objects.process, "sampler", sampler)
    check_sampling(net, objects.process, "guidance", sampler, guidance)
    check_decoder(net, objects.process, objects.autoencoder)
    if objects.autoencoder is not None:
        objects.autoencoder.load()
    for name in ("n", "batch_size"):
        if cfg[name] < 1:
            raise InputError(f"{name}={cfg[name]} must be at least 1")
    return Drawing(
        net.eval(),
        objects.process,
        sampler,
        _labels(cfg, net),
        objects.seed,
        guidance,
        objects.autoencoder,
        cfg.batch_size,
        objects.dtype,
    )


def _labels(cfg: DictConfig, net: Backbone) -> Tensor:
    if cfg.labels is None:
        return class_labels(cfg.n, net.num_classes, cfg.class_balance, cfg.seed)
    wrong = [label for label in cfg.labels if not 0 <= label < net.num_classes]
    if wrong or not cfg.labels:
        raise InputError(
            f"labels={list(cfg.labels)}: valid are classes 0..{net.num_classes - 1}, at least one"
        )
    return torch.tensor(list(cfg.labels)).repeat(-(-cfg.n // len(cfg.labels)))[: cfg.n]


def _conclude(cfg: DictConfig, folder: Path, store: SampleStore, labels: Tensor) -> None:
    """Write what stands beside the images."""
    if cfg.pack:
        pack(folder, store, labels, cfg.batch_size)
    else:
        write_atomic(folder / LABELS_FILE, lambda path: np.save(path, labels.numpy()))
    shown = min(cfg.n, 10 * GRID_COLUMNS)
    first = torch.cat(list(islice(store.images().batches(shown), 1)))
    image_grid(first, GRID_COLUMNS, folder / GRID_FILE, title=str(cfg.checkpoint))
    log.info(
        "sample: %s images in %s, %soverview in %s",
        f"{cfg.n:,}",
        store.root,
        f"all in {PACKED_FILE}, " if cfg.pack else "",
        GRID_FILE,
    )
