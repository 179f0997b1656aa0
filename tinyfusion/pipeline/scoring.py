"""Scoring models by a protocol, on one process or on several ranks that share the work."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import Conditioning
from tinyfusion.data.image_sets import ImageSet
from tinyfusion.data.open_images import SAMPLES
from tinyfusion.data.sample_store import SampleStore
from tinyfusion.files import dispensable, read_json, write_json
from tinyfusion.group import ALONE, Group
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.pipeline.sampling import draw_missing, pack
from tinyfusion.processes.contract import Process
from tinyfusion.samplers.generate import Drawing

log = logging.getLogger(__name__)


def kept_samples(
    folder: Path,
    drawing: Drawing,
    group: Group = ALONE,
    show: Callable[[float], None] | None = None,
) -> ImageSet:
    """Draw samples into a folder, as `tinyfusion sample` leaves them; those there are kept.

    Args:
        folder: gets ``samples/`` with a picture each, and ``samples.npz`` of all.
        drawing: the samples.
        group: ranks that share the drawing.
        show: see `pipeline.sampling.draw_missing`.

    Returns:
        The pictures, on every rank.

    Raises:
        InputError: too little room, or too little memory on the device.
    """
    store = SampleStore(
        folder / SAMPLES, len(drawing), drawing.shape, drawing.batch_size, len(drawing), "png"
    )

    def begin() -> list[int]:
        missing = store.missing()
        store.check_space(missing, packed=True)
        return missing

    draw_missing(store, drawing, group.from_first(begin), group, show)
    if group.first:
        pack(folder, store, drawing.conditioning, drawing.batch_size)
    return store.images()


def first_samples(
    evaluation: Evaluation,
    nets: Mapping[str, Backbone],
    process: Process,
    conditioning: Conditioning,
    seed: int,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Pictures of several models from the same noise, drawn as the protocol draws what it scores.

    Args:
        evaluation: the protocol.
        nets: models by name.
        process: their process.
        conditioning: of N pictures.
        seed: sampling seed.
        dtype: what sampling is computed in, see `samplers.generate.generate`.

    Returns:
        By model uint8 0..255, shape (N, C, H, W), on the CPU: equal to the first N samples that
        are scored, if these have the same seed, conditioning and batches.
    """
    drawings = {
        name: evaluation.drawing(net, process, seed, dtype, conditioning)
        for name, net in nets.items()
    }
    return {name: torch.cat(list(drawing.draw_all())) for name, drawing in drawings.items()}


def remembered(
    folder: Path,
    key: Callable[[], dict[str, Any]],
    compute: Callable[[], dict[str, Any]],
    what: str,
    group: Group = ALONE,
) -> dict[str, Any]:
    """A result that is kept in a folder by all it depends on, computed once for many runs.

    Args:
        folder: where results are kept.
        key: gives what the result depends on, as plain data; called on the first rank.
        compute: computes the result, on all ranks.
        what: what it is, for messages.
        group: the ranks.
    """
    found: dict[str, Any] = {}

    def look() -> dict[str, Any] | None:
        content = key()
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
        found.update(key=content, file=folder / f"{digest}.json")
        if not found["file"].is_file():
            return None
        log.info("evaluate: %s taken from %s", what, found["file"])
        return read_json(found["file"], "cached result")["result"]

    known = group.from_first(look)
    if known is not None:
        return known
    result = compute()
    if group.first:
        with dispensable():
            write_json(found["file"], {"key": found["key"], "result": result})
    return result
