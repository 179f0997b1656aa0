"""torch-fidelity's TensorFlow-compatible Inception with ADM's spatial features beside its own.

torch-fidelity is imported inside functions: its import takes seconds.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinyfusion.checkpoints.tensors import read_torch
from tinyfusion.errors import InputError, first_line
from tinyfusion.files import known_sha256

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

INCEPTION_EXTRACTOR = "tinyfusion-inception"
"""Name of this extractor in torch-fidelity's registry."""

SPATIAL = "spatial"
"""Name of the features that sFID is computed on, in every extractor that has them."""

SPATIAL_CHANNELS = 7
"""Of the 17x17 map, so that there are 2,023 features, about as many as pool features."""

_HASH = "6726825d"
"""Begin of the SHA-256 of the weights that torch-fidelity publishes; part of their file's name."""


@cache
def inception_class() -> type[FeatureExtractorBase]:
    """The extractor; a subclass of torch-fidelity's own, to be registered by its name."""
    # The base class is only known once torch-fidelity is imported, hence a class in a function.
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class AdmInception(FeatureExtractorInceptionV3):
        """Features of `FeatureExtractorInceptionV3` and ``spatial``, (B, 17 * 17 * 7).

        These are the first seven channels of ``mixed_6/conv`` in the graph of 2015, which is the
        1x1 branch of ``Mixed_6d`` here, after its ReLU (sFID, arXiv 2103.03841, and ADM's
        evaluator). Their order, (row, column, channel), is that of statistics in reference files.
        """

        features_list: list[str]

        def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
            super().__init__(name, features_list, **kwargs)
            self.Mixed_6d.branch1x1.register_forward_hook(self._keep)

        def _keep(self, module: Any, args: Any, output: Tensor) -> None:
            first_B7HW = output[:, :SPATIAL_CHANNELS]
            self._spatial = first_B7HW.permute(0, 2, 3, 1).flatten(1).float()

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            """Map uint8 images (B, 3, H, W) to the requested outputs, in their order."""
            asked = self.features_list
            # The base answers what its list asks for and goes no further than that needs.
            base = [name for name in asked if name != SPATIAL]
            if SPATIAL in asked and "768" not in base:
                base.append("768")  # the first one behind Mixed_6d
            self.features_list = base
            try:
                found = dict(zip(self.features_list, super().forward(x), strict=True))
            finally:
                self.features_list = asked
            if SPATIAL in asked:
                found[SPATIAL] = self._spatial
            return tuple(found[name] for name in asked)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return *FeatureExtractorInceptionV3.get_provided_features_list(), SPATIAL

        @staticmethod
        def can_be_compiled() -> bool:
            return False  # the compiled module would not call the hook

    return AdmInception


def inception_file(path: str | None) -> Path:
    """The file of Inception's weights, fetched if need be.

    Args:
        path: a local file, such as a copy of torch-fidelity's
            ``weights-inception-2015-12-05-6726825d.pth``; ``None`` for the folder of torch.hub,
            to which it is fetched at first use.

    Raises:
        InputError: it is not there, is damaged, or can't be fetched.
    """
    if path is None:
        return _fetched()
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"evaluation.weights={path!r} does not exist; {_advice()}")
    return file


def build_inception(
    kind: type[FeatureExtractorBase], name: str, wanted: list[str], file: Path
) -> FeatureExtractorBase:
    """An extractor with the weights of a file, which is read once.

    Args:
        kind: torch-fidelity's Inception, or the class derived from it here.
        name: name of the extractor.
        wanted: its features that are asked for.
        file: see `inception_file`.

    Raises:
        InputError: the file can't be read, does not hold the weights of Inception, or would run
            code when it is read.
    """
    try:
        weights = read_torch(file)
    except InputError as error:
        reason = str(error).removeprefix(f"{file}: ")
        raise InputError(
            f"{str(file)!r} can't be read as the weights of Inception ({reason}); {_advice()}"
        ) from None
    if not isinstance(weights, dict) or "fc.weight" not in weights:
        raise InputError(f"{str(file)!r} does not hold the weights of Inception; {_advice()}")
    found = [weights]

    class Loaded(kind):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(found.pop())

    # The constructor loads a file by itself, and without protection: it gets one with nothing in.
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    # Weights replace start values, which are drawn from the global generator.
    with torch.random.fork_rng(devices=[]):
        try:
            return Loaded(name, wanted, feature_extractor_weights_path=nothing)
        except RuntimeError as error:  # tensors that are missing or have other shapes
            raise InputError(
                f"{str(file)!r} does not hold the weights of Inception ({first_line(error)}); "
                f"{_advice()}"
            ) from None


def _fetched() -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    file = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if file.is_file():
        if not known_sha256(file).startswith(_HASH):
            raise InputError(f"{str(file)!r} is damaged: remove it to have it fetched again")
    else:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix=_HASH)
        except Exception as error:  # no network, a proxy, a full disk, another content
            raise InputError(
                f"the weights of Inception are not on this machine and can't be fetched "
                f"({first_line(error)}); {_advice()}"
            ) from None
    return file


def _advice() -> str:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return (
        f"get {URL_INCEPTION_V3} where there is a network and give evaluation.weights=FILE, or "
        f"put it into {Path(torch.hub.get_dir()) / 'checkpoints'}"
    )
