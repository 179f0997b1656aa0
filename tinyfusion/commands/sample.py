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
from tinyfusion.commands.checks import check_decoder
from tinyfusion.commands.draw import PACKED_FILE, Share, pack
from tinyfusion.commands.setup import Setup
from tinyfusion.conditioning import ClassLabels, Conditioning
from tinyfusion.data.open_images import SAMPLES
from tinyfusion.data.sample_store import SampleStore
from tinyfusion.errors import InputError
from tinyfusion.figures.grid import image_grid
from tinyfusion.files import read_json, write_atomic, write_json
from tinyfusion.ranks import is_first_rank, is_numbered, is_rank, rank, world_size
from tinyfusion.runtime.progress import ImageProgress
from tinyfusion.samplers.generate import Drawing, class_labels
from tinyfusion.settings.compose import build

log = logging.getLogger(__name__)

LABELS_FILE, GRID_FILE, RECORD_FILE = "labels.npy", "grid.png", "sampling.json"
GRID_COLUMNS = 10


def main(cfg: DictConfig, folder: Path) -> None:
    """Fill ``samples/``; then write ``samples.npz``, the labels and ``grid.png``.

    Each rank draws its share of the batches. The first one waits for the others.
    """
    setup = Setup(cfg, folder)
    if not _takes_part(setup):
        return
    _check_folder(folder)
    drawing = _drawing(setup, cfg)
    store = SampleStore(
        folder / SAMPLES, cfg.n, drawing.shape, cfg.batch_size, cfg.shard_size, cfg.format
    )
    missing = store.missing()
    if is_first_rank():
        store.check_space(missing, cfg.pack)
        there = cfg.n - store.images_in(missing)
        if there:
            log.info("sample: %s of %s images are there already", f"{there:,}", f"{cfg.n:,}")
        if store.num_shards < setup.world:
            log.warning(
                "sample: %d part(s) can't keep %d devices busy; choose a smaller batch_size%s",
                store.num_shards,
                setup.world,
                " or shard_size" if cfg.format == "npz" else "",
            )
    _record(folder, setup.source_hash)
    drawing.net.to(setup.device)
    if setup.trainer.compile:
        compile_blocks(drawing.net, setup.trainer.compile_backend)
    # Of several ranks the first one shows what all have done.
    with ImageProgress(
        "sample", cfg.n, cfg.n - store.images_in(missing), bar=setup.bars and is_first_rank()
    ) as progress:
        share = Share(store, drawing, set(missing), progress if is_first_rank() else None)
        share.fill_all(range(rank(), store.num_shards, setup.world))
        if not is_first_rank():
            return
        share.wait()
    _conclude(cfg, folder, store, drawing.conditioning)


def _takes_part(setup: Setup) -> bool:
    """Whether this process draws a share.

    Raises:
        InputError: other ranks were started than the trainer's settings speak of: the first one
            would wait for shares that nobody draws.
    """
    started = world_size()
    asked = f"trainer.devices={setup.trainer.devices} trainer.num_nodes={setup.trainer.num_nodes}"
    if started is not None and started != setup.world:
        raise InputError(
            f"{asked} are {setup.world} rank(s), but {started} were started; start as many"
        )
    if is_rank() and setup.trainer.num_nodes > 1 and not is_numbered():
        raise InputError(
            f"{asked}: the ranks are numbered on their machines only (LOCAL_RANK); start them by "
            "torchrun or srun, or one command per machine with NODE_RANK, without LOCAL_RANK"
        )
    return rank() < setup.world


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


def _drawing(setup: Setup, cfg: DictConfig) -> Drawing:
    """What is to be drawn, checked."""
    net = setup.load_alone(cfg.checkpoint)
    sampler, guidance = build(cfg.sampler), build(cfg.guidance)
    setup.check_sampling(net, "sampler", sampler)
    setup.check_sampling(net, "guidance", sampler, guidance)
    check_decoder(net, setup.process, setup.autoencoder)
    if setup.autoencoder is not None:
        setup.autoencoder.load()
    for name in ("n", "batch_size"):
        if cfg[name] < 1:
            raise InputError(f"{name}={cfg[name]} must be at least 1")
    return Drawing(
        net.eval(),
        setup.process,
        sampler,
        ClassLabels(_labels(cfg, net)),
        setup.seed,
        guidance,
        setup.autoencoder,
        cfg.batch_size,
        setup.dtype,
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


def _conclude(
    cfg: DictConfig, folder: Path, store: SampleStore, conditioning: Conditioning
) -> None:
    """Write what stands beside the images."""
    if cfg.pack:
        pack(folder, store, conditioning, cfg.batch_size)
    else:
        labels = conditioning.record()["labels"]
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
