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
from tinyfusion.commands.loading import load
from tinyfusion.conditioning import ClassLabels, Conditioning
from tinyfusion.data.open_images import SAMPLES
from tinyfusion.data.sample_store import SampleStore
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_atomic, write_json
from tinyfusion.pipeline.devices import joined_ranks
from tinyfusion.pipeline.sampling import PACKED_FILE, draw_missing, pack
from tinyfusion.progress import Progress
from tinyfusion.samplers.generate import Drawing, class_labels
from tinyfusion.settings.objects import Objects, objects_of

log = logging.getLogger(__name__)

LABELS_FILE, GRID_FILE, RECORD_FILE = "labels.npy", "grid.png", "sampling.json"
GRID_COLUMNS = 10


def main(cfg: DictConfig, folder: Path) -> None:
    """Fill ``samples/``; then write ``samples.npz``, the labels and ``grid.png``.

    Each rank draws its share of the batches.
    """
    objects = objects_of(cfg)
    group = joined_ranks(objects.trainer, objects.devices)
    drawing = _drawing(objects, cfg)
    store = SampleStore(
        folder / SAMPLES, cfg.n, drawing.shape, cfg.batch_size, cfg.shard_size, cfg.format
    )
    missing = group.from_first(lambda: _begin(cfg, folder, store, objects.source_sha256))
    there = cfg.n - store.images_in(missing)
    if there:
        log.info("sample: %s of %s images are there already", f"{there:,}", f"{cfg.n:,}")
    if store.num_shards < group.size:
        log.warning(
            "sample: %d part(s) can't keep %d devices busy; choose a smaller batch_size%s",
            store.num_shards,
            group.size,
            " or shard_size" if cfg.format == "npz" else "",
        )
    drawing.net.to(objects.device)
    if objects.trainer.compile:
        compile_blocks(drawing.net, objects.trainer.compile_backend)
    with Progress("sample", cfg.n, there, bar=objects.bars and group.first) as progress:
        draw_missing(store, drawing, missing, group, progress.reach)
    if group.first:
        _conclude(cfg, folder, store, drawing.conditioning)


def _begin(cfg: DictConfig, folder: Path, store: SampleStore, weights: str) -> list[int]:
    """The batches that are missing of a folder that may be drawn into.

    Raises:
        InputError: images of other or unknown weights, or too little room.
    """
    _check_folder(folder)
    missing = store.missing()
    store.check_space(missing, cfg.pack)
    _record(folder, weights)
    return missing


def _check_folder(folder: Path) -> None:
    """Refuse to add to images of unknown origin.

    Raises:
        InputError: there are some, but no record of them, which is written beforehand.
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
    net = load(objects, objects.checkpoint)
    sampler, guidance = objects.sampler, objects.guidance
    assert sampler is not None
    check_sampling(net, objects.process, "sampler", sampler)
    check_sampling(net, objects.process, "guidance", sampler, guidance)
    check_decoder(net, objects.process, objects.autoencoder)
    for name in ("n", "batch_size"):
        if cfg[name] < 1:
            raise InputError(f"{name}={cfg[name]} must be at least 1")
    labels = ClassLabels(_labels(cfg, net))
    objects.check_machine()
    if objects.autoencoder is not None:
        objects.autoencoder.load()
    return Drawing(
        net.eval(),
        objects.process,
        sampler,
        labels,
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


def _conclude(
    cfg: DictConfig, folder: Path, store: SampleStore, conditioning: Conditioning
) -> None:
    """Write what stands beside the images."""
    from tinyfusion.figures.grid import image_grid  # imports matplotlib

    if cfg.pack:
        pack(folder, store, conditioning, cfg.batch_size)
    else:
        labels = conditioning.record()["labels"]
        write_atomic(folder / LABELS_FILE, lambda path: np.save(path, labels.numpy()))
    count = min(cfg.n, 10 * GRID_COLUMNS)
    first = torch.cat(list(islice(store.images().batches(count), 1)))
    image_grid(first, GRID_COLUMNS, folder / GRID_FILE, title=str(cfg.checkpoint))
    log.info(
        "sample: %s images in %s, %soverview in %s",
        f"{cfg.n:,}",
        store.root,
        f"all in {PACKED_FILE}, " if cfg.pack else "",
        GRID_FILE,
    )
