"""Real images to score samples against: their features, computed once and kept by content.

Whoever scores several models, in one run or in many, meets the same real images again.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tinyfusion.data.adm_batch import IMAGES, names_in, read_statistics
from tinyfusion.data.image_sets import ImageSet
from tinyfusion.data.open_images import open_images
from tinyfusion.errors import InputError
from tinyfusion.files import dispensable, known_sha256, write_atomic
from tinyfusion.group import ALONE, Group
from tinyfusion.metrics.features import (
    extract,
    extractor_class,
    feature_sizes,
    layers,
    weights_digest,
)
from tinyfusion.metrics.fidelity import Reference, Statistics
from tinyfusion.version import code_digest, modules_of

log = logging.getLogger(__name__)

KEY = "evaluation.reference"


@dataclass(frozen=True)
class RealImages:
    """Real images, and what is known of a larger set that they stand for.

    Attributes:
        images: the images; ``None`` if only statistics are known.
        statistics: the file's own, by the names of ADM's layout; usually none.
        where: the file or folder they were read from; ``None`` for other ones.
    """

    images: ImageSet | None
    statistics: dict[str, np.ndarray]
    where: str | None = None

    def digest(self) -> str:
        """SHA-256 of what was read."""
        if self.images is None:
            assert self.where is not None
            return known_sha256(self.where)
        return self.images.digest() or ""


def read_reference(path: Path | str, limit: int | None = None, key: str = KEY) -> RealImages:
    """Real images that the user names.

    Args:
        path: an ``.npz`` file in the layout of ADM's evaluator, with images in ``arr_0``,
            statistics, or both; or what else `open_images` takes.
        limit: take at most so many images, the first ones.
        key: how the user calls the path, for messages.

    Raises:
        InputError: no such file, another content, or images of different sizes.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        return RealImages(open_images(path, limit, key), {}, str(path))
    statistics = read_statistics(path, key)
    images = None
    if IMAGES in names_in(path, key) or not statistics:
        images = open_images(path, limit, key)
    return RealImages(images, statistics, str(path))


def reference_of(
    real: RealImages,
    extractor: str,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    progress: bool = False,
    group: Group = ALONE,
) -> Reference:
    """What the metrics need of real images.

    A file's own statistics go before those of its images: of ADM's reference batches they are of
    all training images, of which ``arr_0`` holds ten thousand.

    Args:
        real: the real images.
        extractor: name in torch-fidelity's registry.
        weights: file of its weights.
        device: where to compute.
        cache: folder that features are kept in, by the content of images and weights and by the
            code that computes them; ``None`` computes them anew.
        progress: show a bar.
        group: ranks that share the images; the further ones get an empty reference.

    Raises:
        InputError: see `check_statistics`.
    """
    check_statistics(real, extractor, weights)
    found = Reference({}, {})
    if real.images is not None:
        found = _features(real.images, extractor, weights, device, cache, progress, group)
    if not group.first:
        return Reference({}, {})
    known = layers(extractor)
    given = {
        metric: Statistics(real.statistics[mean], real.statistics[covariance])
        for metric, mean, covariance in _NAMES
        if mean in real.statistics and metric in known
    }
    return Reference(found.statistics | given, found.features, larger=bool(given))


_NAMES = (("fid", "mu", "sigma"), ("sfid", "mu_s", "sigma_s"))
"""Metrics and the names of their statistics in ADM's layout."""


def check_statistics(
    real: RealImages, extractor: str, weights: str | None = None, key: str = KEY
) -> None:
    """Refuse a file whose statistics are of other features than an extractor's.

    Args:
        real: what was read from the file.
        extractor: name in torch-fidelity's registry.
        weights: file of its weights.
        key: how the user calls the file, for messages.

    Raises:
        InputError: they have another number of features than the extractor gives.
    """
    for metric, mean, _ in _NAMES:
        layer = layers(extractor).get(metric)
        if mean not in real.statistics or layer is None:
            continue
        found, wanted = len(real.statistics[mean]), feature_sizes(extractor, weights)[layer]
        if found != wanted:
            raise InputError(
                f"{key}={real.where!r}: {mean} is of {found} features, but extractor "
                f"{extractor!r} has {wanted}; the statistics are another extractor's"
            )


def _features(
    images: ImageSet,
    extractor: str,
    weights: str | None,
    device: torch.device | str,
    cache: Path | None,
    progress: bool,
    group: Group,
) -> Reference:
    file, known = None, None
    if cache is not None and group.first:
        file = _file(images, extractor, weights, device, cache)
        known = None if file is None else _read(file)
    if group.broadcast_object(known is not None):
        if known is None:  # the first rank has it
            return Reference({}, {})
        log.info("evaluate: features of %s real images taken from %s", len(images), file)
        return known
    features = extract(
        images, extractor, weights, device, name="reference", progress=progress, group=group
    )
    if not group.first:
        return Reference({}, {})
    kept = {layer for metric, layer in layers(extractor).items() if metric in ("fid", "prc")}
    found = Reference.of(features, extractor)
    found = Reference(found.statistics, {layer: features[layer] for layer in kept})
    if file is not None:
        _write(file, found)
    return found


def _file(
    images: ImageSet,
    extractor: str,
    weights: str | None,
    device: torch.device | str,
    cache: Path,
) -> Path | None:
    """Where features are kept; ``None`` for images that are not known by their content."""
    content = images.digest()
    if content is None:
        return None
    # Devices round features otherwise.
    kind = torch.device(device).type
    of_weights = weights_digest(extractor, weights)
    code = code_digest(__name__, *modules_of(images, extractor_class(extractor)))
    key = "/".join((content, extractor, of_weights, kind, code))
    return cache / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"


def _write(file: Path, reference: Reference) -> None:
    content = {f"features.{layer}": f.numpy() for layer, f in reference.features.items()}
    for name, statistics in reference.statistics.items():
        content |= {f"{name}.mu": statistics.mu, f"{name}.sigma": statistics.sigma}
    content = {name: np.ascontiguousarray(array) for name, array in content.items()}
    with dispensable():
        write_atomic(file, lambda path: save_file(content, path))


def _read(file: Path) -> Reference | None:
    """What a cache file holds; ``None`` if there is none, or one that is torn."""
    try:
        if not file.is_file():
            return None
        content = load_file(file)
    except (SafetensorError, OSError):
        return None
    known = [metric for metric, _, _ in _NAMES if f"{metric}.mu" in content]
    return Reference(
        {name: Statistics(content[f"{name}.mu"], content[f"{name}.sigma"]) for name in known},
        {
            name.removeprefix("features."): torch.from_numpy(array)
            for name, array in content.items()
            if name.startswith("features.")
        },
    )
