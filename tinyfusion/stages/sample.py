"""`tinyfusion sample`: draw images from a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures.grid import image_grid
from tinyfusion.files import write_atomic
from tinyfusion.samplers.generate import balanced_labels, generate_images
from tinyfusion.settings.compose import build
from tinyfusion.stages.checks import check_decoder
from tinyfusion.stages.setup import Setup

log = logging.getLogger(__name__)

GRID_COLUMNS = 10


def main(cfg: DictConfig, folder: Path) -> None:
    """Write ``samples/NNNNNN.png``, ``samples.npz`` (``arr_0``, labels) and ``grid.png``."""
    setup = Setup(cfg, folder)
    net = setup.load_alone(cfg.checkpoint)
    sampler, guidance = build(cfg.sampler), build(cfg.guidance)
    setup.check_sampling(net, "sampler", sampler)
    setup.check_sampling(net, "guidance", sampler, guidance)
    check_decoder(net, setup.process, setup.autoencoder)
    net = net.to(setup.device)
    num_classes = net.num_classes
    if cfg.n < 1:
        raise InputError(f"n={cfg.n} must be at least 1")
    if cfg.labels is None:
        labels = balanced_labels(cfg.n, num_classes)
    else:
        wrong = [label for label in cfg.labels if not 0 <= label < num_classes]
        if wrong or not cfg.labels:
            raise InputError(
                f"labels={list(cfg.labels)}: valid are classes 0..{num_classes - 1}, at least one"
            )
        labels = torch.tensor(list(cfg.labels)).repeat(-(-cfg.n // len(cfg.labels)))[: cfg.n]
    images = generate_images(
        net,
        setup.process,
        sampler,
        labels,
        setup.seed,
        guidance,
        setup.autoencoder,
        batch_size=cfg.batch_size,
        progress=setup.bars,
    )
    pixels = images.permute(0, 2, 3, 1).numpy()
    for index, picture in enumerate(pixels):
        image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
        write_atomic(folder / "samples" / f"{index:06d}.png", image.save)
    write_atomic(
        folder / "samples.npz",
        lambda path: np.savez(path, arr_0=pixels, labels=labels.numpy()),
    )
    shown = images[: 10 * GRID_COLUMNS]
    image_grid(shown, GRID_COLUMNS, folder / "grid.png", title=str(cfg.checkpoint))
    log.info("sample: %d images in %s, overview in %s", cfg.n, folder / "samples", "grid.png")
