"""Feature extractors: torch-fidelity's registry, our entries in it, and features of image sets.

torch-fidelity is imported inside functions: its import takes seconds.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinyfusion.data.image_sets import ImageSet, TensorImages
from tinyfusion.errors import InputError, first_line
from tinyfusion.files import Stamp, known_sha256, stamp_of
from tinyfusion.group import ALONE, Group
from tinyfusion.metrics.classifier import DigitsClassifier, classifier_file, load_digits_classifier
from tinyfusion.metrics.inception import (
    INCEPTION_EXTRACTOR,
    SPATIAL,
    SPATIAL_CHANNELS,
    build_inception,
    inception_class,
    inception_file,
)
from tinyfusion.progress import Progress

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

DIGITS_EXTRACTOR = "tinyfusion-digits"
"""Name of the digits extractor in torch-fidelity's registry."""

_CUDNN = {"enabled": True, "benchmark": False, "deterministic": False}

Features = dict[str, Tensor]
"""Features of a set of images by the name of their layer, each of shape (N, D), on the CPU."""


def extractor_class(name: str) -> type[FeatureExtractorBase]:
    """The torch-fidelity feature extractor called ``name``; ours are registered on first use.

    Raises:
        InputError: nothing is registered under that name.
    """
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    own = {DIGITS_EXTRACTOR: _digits_extractor_class, INCEPTION_EXTRACTOR: inception_class}
    for registered, kind in own.items():
        if registered not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(registered, kind())
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join(sorted(FEATURE_EXTRACTORS_REGISTRY))
        raise InputError(f"feature extractor {name!r} is not registered; known: {known}")
    return FEATURE_EXTRACTORS_REGISTRY[name]


def layers(name: str) -> dict[str, str]:
    """Which features of an extractor each metric uses.

    Args:
        name: name of the extractor.

    Returns:
        The layer's name by torch-fidelity's names of metrics (``fid``, ``isc``, ``prc``), and of
        ``sfid`` if the extractor has spatial features.

    Raises:
        InputError: nothing is registered under that name.
    """
    kind = extractor_class(name)
    found = {
        metric: kind.get_default_feature_layer_for_metric(metric)
        for metric in ("fid", "isc", "prc")
    }
    if SPATIAL in kind.get_provided_features_list():
        found["sfid"] = SPATIAL
    return found


def load_extractor(name: str, weights: str | None = None) -> FeatureExtractorBase:
    """An extractor that gives all layers of :func:`layers`; built once and kept.

    The file of its weights is read again only if it changed.

    Args:
        name: name in torch-fidelity's registry.
        weights: file of its weights; ``None`` for the published ones, fetched at first use.

    Raises:
        InputError: nothing is registered under that name, or its weights are not on this machine
            and can't be fetched, or can't be read.
    """
    file = weights_file(name, weights)
    return _built(name, weights, stamp_of(file) if file and file.is_file() else None)


@lru_cache(maxsize=4)
def _built(name: str, weights: str | None, stamp: Stamp | None) -> FeatureExtractorBase:
    kind = extractor_class(name)
    wanted = list(dict.fromkeys(layers(name).values()))
    if _is_inception(kind):
        assert stamp is not None, "the file was found before"
        return build_inception(kind, name, wanted, Path(stamp[0]))
    try:
        # Weights replace start values, which are drawn from the global generator.
        with torch.random.fork_rng(devices=[]):
            found = kind(name, wanted, feature_extractor_weights_path=weights)
    except Exception as error:  # downloads and broken files raise errors of many kinds
        raise InputError(
            f"the weights of the feature extractor {name!r} can't be fetched or read "
            f"({first_line(error)}); fetch them where there is a network, into the same folder of "
            f"torch.hub ({torch.hub.get_dir()}), or give evaluation=none for no scores"
        ) from None
    return found.requires_grad_(False).eval()


def weights_file(name: str, weights: str | None = None) -> Path | None:
    """The file of an extractor's weights; ``None`` for weights that its package finds by itself.

    Args:
        name: name in torch-fidelity's registry.
        weights: see :func:`load_extractor`.

    Raises:
        InputError: nothing is registered under that name, or Inception's weights are not on this
            machine and can't be fetched.
    """
    kind = extractor_class(name)
    if _is_inception(kind):
        return inception_file(weights)
    if weights is not None:
        return Path(weights).expanduser()
    return getattr(kind, "weights_file", None)


def weights_digest(name: str, weights: str | None = None) -> str:
    """SHA-256 of :func:`weights_file`; empty if there is none.

    Raises:
        InputError: see :func:`weights_file`.
    """
    file = weights_file(name, weights)
    return "" if file is None else known_sha256(file)


@cache
def feature_sizes(name: str, weights: str | None = None) -> dict[str, int]:
    """Number of features in each layer of :func:`layers`, found by looking at an image.

    Args:
        name: name in torch-fidelity's registry.
        weights: see :func:`load_extractor`.

    Raises:
        InputError: see :func:`load_extractor`.
    """
    channels, *size = _input_shape(name)
    # Of a single number torchmetrics would drop the dimensions.
    blank = torch.zeros(2, channels, *(size or (64, 64)), dtype=torch.uint8)
    found = extract(TensorImages(blank), name, weights)
    return {layer: features.shape[1] for layer, features in found.items()}


def extract(
    images: ImageSet,
    extractor: str,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    name: str = "images",
    progress: bool = False,
    group: Group = ALONE,
) -> Features:
    """Features of all images, in one pass that several ranks may share.

    How many ranks there are does not change them: batches are the same ones.

    Args:
        images: the images; grey ones are repeated to three channels for extractors of colour.
        extractor: name in torch-fidelity's registry.
        weights: see :func:`load_extractor`.
        device: where to compute; the extractor stays there.
        batch_size: images at a time.
        name: what the images are called in messages.
        progress: show a bar, of this rank's share.
        group: ranks that share the images.

    Returns:
        The layers of :func:`layers` by name: on the first rank of all images, on the others of
        those that they looked at.

    Raises:
        InputError: no image, images that the extractor does not take, or a feature that is not
            finite.
    """
    from tinyfusion.metrics.collected import CollectedFeatures  # imports torchmetrics: seconds

    if not len(images):
        raise InputError(f"{name}: 0 images have no features; give at least one")
    check_input(images.shape, extractor)
    net = load_extractor(extractor, weights).to(device)
    channels = _input_shape(extractor)[0]
    found = CollectedFeatures(list(dict.fromkeys(layers(extractor).values())), group)
    total = -(-len(images) // group.size)
    with (
        torch.no_grad(),
        # TF32, which torch lets convolutions use on GPUs, changes features in the third digit.
        torch.backends.cudnn.flags(**(_CUDNN | {"allow_tf32": False})),
        Progress(f"features of {name}", total, bar=progress, seconds=None) as bar,
    ):
        for first, batch in images.share(batch_size, group.rank, group.size):
            # Of one channel or of as many as are wanted: an expansion copies nothing.
            batch = batch.to(device).expand(-1, channels, -1, -1)
            features = net.convert_features_tuple_to_dict(net(batch))
            for layer, values in features.items():
                _check_finite(values, layer, name, first)
            found.update(first, features)
            bar(len(batch))
    return found.compute()


def check_input(shape: tuple[int, int, int], extractor: str) -> None:
    """Refuse images that an extractor does not take.

    Args:
        shape: shape of one image, (C, H, W).
        extractor: its name.

    Raises:
        InputError: another number of channels, or another size where it takes only one.
    """
    channels, *size = _input_shape(extractor)
    if shape[0] not in (1, channels) or (size and list(shape[1:]) != size):
        found, wanted = ("x".join(map(str, s)) for s in (shape, (channels, *size)))
        raise InputError(
            f"images are {found}, but extractor {extractor!r} takes {wanted}"
            + ("" if size else " channels")
        )


def _input_shape(extractor: str) -> tuple[int, ...]:
    # Only our own extractor of digits states its input; torch-fidelity's take RGB of any size.
    return getattr(extractor_class(extractor), "input_shape", (3,))


def _check_finite(features: Tensor, layer: str, name: str, first: int) -> None:
    finite = features.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = first + int((~finite).nonzero()[0])
        raise InputError(
            f"{name}: the features ({layer!r}) of image {bad} are not finite; the image or the "
            "extractor's weights are broken"
        )


def _is_inception(kind: type[FeatureExtractorBase]) -> bool:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return issubclass(kind, FeatureExtractorInceptionV3)


@cache
def _digits_extractor_class() -> type[FeatureExtractorBase]:
    # The base class is only known once torch-fidelity is imported, hence a class in a function.
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class DigitsExtractor(FeatureExtractorBase):
        """Features (64), logits (10) and spatial features (4 * 4 * 7) of uint8 digits.

        Runs and answers in float64: in float32, TF32 convolutions make CUDA differ from the CPU
        and the distance of an image to its own copy is not zero. The spatial features are, as
        Inception's, the first seven channels of an inner map, the last convolution's.
        """

        input_shape = DigitsClassifier.input_shape
        weights_file = classifier_file()

        def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
            # torch-fidelity hands over all options of the metrics call; none concerns us.
            super().__init__(name, features_list)
            self.classifier = load_digits_classifier().double()

        def forward(self, input: Tensor) -> tuple[Tensor, ...]:
            """Map uint8 images (B, 1, 8, 8) to the requested outputs, in their order."""
            maps_BCHW = self.classifier.maps(input.double() / 127.5 - 1)
            features = self.classifier.pooled(maps_BCHW)
            outputs = {
                "features": features,
                "logits": self.classifier.head(features),
                SPATIAL: maps_BCHW[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1),
            }
            return tuple(outputs[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits", SPATIAL

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return True

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(1, *DigitsClassifier.input_shape, dtype=torch.uint8)

    return DigitsExtractor
