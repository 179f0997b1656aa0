"""Writing a model folder: ``model.safetensors``, and ``config.json`` with its hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from tinyfusion.backbones.contract import Backbone, count_parameters
from tinyfusion.backbones.presets import family_of
from tinyfusion.backbones.rebuild import check_own
from tinyfusion.checkpoints.layout import CONFIG_FILE, FORMAT, FORMAT_VERSION, WEIGHTS_FILE
from tinyfusion.checkpoints.tensors import write_tensors
from tinyfusion.errors import InputError
from tinyfusion.files import sha256_of, write_json
from tinyfusion.version import __version__


def save_model(
    net: Backbone,
    folder: Path | str,
    provenance: dict[str, Any] | None = None,
    half: bool = False,
) -> Path:
    """Write ``net`` as a folder that :func:`tinyfusion.load` reads.

    The configuration is written last and holds the SHA-256 of the weights, so a run killed
    between the two files leaves a folder that is refused, never one that loads wrongly.

    Args:
        net: the model; its tensors are stored under their public names.
        folder: where to; made if need be, files of an earlier model there are replaced.
        provenance: how the model came about, as data that JSON can hold.
        half: store floating tensors as float16, except fixed tables.

    Returns:
        ``folder``.

    Raises:
        InputError: the network's class is from outside this package and its models could not be
            loaded again, or ``half`` was asked for weights that float16 can't hold.
    """
    folder = Path(folder)
    family = family_of(net)
    check_own(net)
    json.dumps(provenance)  # fails here, before any file is touched
    state = stored_state(net, half)
    weights = write_tensors(folder / WEIGHTS_FILE, state)
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tinyfusion_version": __version__,
        "backbone": family,
        "arguments": net.config(),
        "depth": net.depth,
        "kept_from": None if net.kept_from is None else list(net.kept_from),
        **({"source_borders": list(net.source_borders)} if net.source_borders else {}),
        "num_parameters": count_parameters(net),
        "weights": {"file": WEIGHTS_FILE, "sha256": sha256_of(weights)},
        "provenance": provenance or {},
    }
    write_json(folder / CONFIG_FILE, config)
    return folder


def stored_state(net: Backbone, half: bool) -> dict[str, Tensor]:
    """The state dict of a model as files hold it; see `stored`.

    Args:
        net: the model; its fixed tables are never halved.
        half: store floating tensors as float16.

    Raises:
        InputError: float16 can't hold the weights.
    """
    return {
        name: stored(tensor, half and name not in net.fixed_tables, name)
        for name, tensor in net.state_dict().items()
    }


def stored(tensor: Tensor, half: bool, name: str) -> Tensor:
    """A tensor as files hold it: on the CPU, without gradient, float16 if ``half``.

    Args:
        tensor: any tensor.
        half: store floating tensors as float16.
        name: its name, for the message.

    Raises:
        InputError: a value of the tensor is not finite in float16.
    """
    tensor = tensor.detach().cpu().contiguous()
    if not half or not tensor.is_floating_point():
        return tensor
    halved = tensor.half()
    if not halved.isfinite().all():
        raise InputError(
            f"half=True: tensor {name!r} is not finite in float16 (largest magnitude "
            f"{tensor.abs().max().item():g}); save it with half=False"
        )
    return halved
