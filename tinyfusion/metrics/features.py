"""The digits classifier as a torch-fidelity feature extractor.

torch-fidelity is imported inside functions: its import takes seconds.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinyfusion.errors import InputError, first_line
from tinyfusion.metrics.classifier import DigitsClassifier, load_digits_classifier

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

DIGITS_EXTRACTOR = "tinyfusion-digits"
"""Name of the digits extractor in torch-fidelity's registry."""


def extractor_class(name: str) -> type[FeatureExtractorBase]:
    """The torch-fidelity feature extractor called ``name``; ours is registered on first use.

    Raises:
        InputError: nothing is registered under that name.
    """
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if DIGITS_EXTRACTOR not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(DIGITS_EXTRACTOR, _digits_extractor_class())
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join(sorted(FEATURE_EXTRACTORS_REGISTRY))
        raise InputError(f"feature extractor {name!r} is not registered; known: {known}")
    return FEATURE_EXTRACTORS_REGISTRY[name]


@cache
def fetch_extractor(name: str) -> None:
    """Build an extractor once, so that its weights are here before they are needed.

    Raises:
        InputError: nothing is registered under that name, or its weights are not on this machine
            and can't be fetched, or can't be read.
    """
    kind = extractor_class(name)
    layers = [kind.get_default_feature_layer_for_metric("fid")]
    try:
        # Weights replace start values, which are drawn from the global generator.
        with torch.random.fork_rng(devices=[]):
            kind(name, layers)
    except Exception as error:  # downloads and broken files raise errors of many kinds
        raise InputError(
            f"the weights of the feature extractor {name!r} can't be fetched or read "
            f"({first_line(error)}); fetch them where there is a network, into the same folder of "
            f"torch.hub ({torch.hub.get_dir()}), or give evaluation=none for no scores"
        ) from None


@cache
def _digits_extractor_class() -> type[FeatureExtractorBase]:
    # The base class is only known once torch-fidelity is imported, hence a class in a function.
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class DigitsExtractor(FeatureExtractorBase):
        """Features (64) and logits (10) of uint8 digits.

        Runs and answers in float64: in float32, TF32 convolutions make CUDA differ from the CPU
        and the distance of an image to its own copy is not zero.
        """

        input_shape = DigitsClassifier.input_shape

        def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
            # torch-fidelity hands over all options of the metrics call; none concerns us.
            super().__init__(name, features_list)
            self.classifier = load_digits_classifier().double()

        def forward(self, input: Tensor) -> tuple[Tensor, ...]:
            """Map uint8 images (B, 1, 8, 8) to the requested outputs, in their order."""
            features = self.classifier.features(input.double() / 127.5 - 1)
            outputs = {"features": features}
            if "logits" in self.features_list:
                outputs["logits"] = self.classifier.head(features)
            return tuple(outputs[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

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
