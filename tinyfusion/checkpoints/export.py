"""Writing a model in the layouts of other programs: a public state dict or a diffusers folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.dit_diffusers import PRIVATE_KEY
from tinyfusion.backbones.presets import family_of
from tinyfusion.checkpoints.card import model_card
from tinyfusion.checkpoints.convention import NULL_CLASS, convention_of
from tinyfusion.checkpoints.diffusers_folder import diffusers_files_of
from tinyfusion.checkpoints.export_record import record_of
from tinyfusion.checkpoints.layout import (
    CARD_FILE,
    CONFIG_FILE,
    EXPORT_FILE,
    SIDECAR_SUFFIX,
    TRANSFORMER_FOLDER,
)
from tinyfusion.checkpoints.read import weights_sha256
from tinyfusion.checkpoints.target import check_target
from tinyfusion.checkpoints.tensors import write_tensors
from tinyfusion.checkpoints.write import save_model, stored, stored_state
from tinyfusion.errors import InputError
from tinyfusion.files import write_folder_atomic, write_json, write_text
from tinyfusion.quiet import at_least

# The process that DiT is trained with here and in the public code: 1000 steps, betas linear in
# 1e-4..2e-2, nothing clamped, the last step ends at clean data. "leading" visits the times of
# our `ddimN` for N that divides 1000.
_PROCESS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "prediction_type": "epsilon",
}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": (
        "DDIMScheduler",
        {
            "clip_sample": False,
            "set_alpha_to_one": True,
            "timestep_spacing": "leading",
            "steps_offset": 0,
        },
    ),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "timestep_spacing": "leading"}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
}
"""Class and settings by the word that ``--scheduler`` takes."""


def save_ours(
    net: Backbone,
    folder: Path | str,
    provenance: dict[str, Any] | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a model folder as :func:`~tinyfusion.checkpoints.save_model` does, with a card.

    Args:
        net: the model.
        folder: where to; made completely or not at all.
        provenance: how the model came about, as data that JSON can hold.
        half: store float16.
        overwrite: replace a model that is there.

    Raises:
        InputError: ``folder`` exists, or see :func:`~tinyfusion.checkpoints.save_model`.
    """
    folder = Path(folder)
    check_target(folder, "ours", overwrite)

    def fill(target: Path) -> None:
        save_model(net, target, provenance, half)
        write_text(target / CARD_FILE, model_card(net, provenance or {}, "ours", folder.name))

    return write_folder_atomic(folder, fill)


def save_public(
    net: Backbone,
    path: Path | str,
    provenance: dict[str, Any] | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a bare state dict with the names of the public code, blocks numbered from 0.

    Beside it come ``<name>.tinyfusion.json``, which records what a state dict can't, and the card
    ``<name>.md``.

    Args:
        net: the model.
        path: weights file; its suffix says how it is stored (``.pt``, ``.pth``, ``.safetensors``).
        provenance: how the model came about, as data that JSON can hold.
        half: store float16, except fixed tables.
        overwrite: replace a file that is there.

    Raises:
        InputError: another suffix, ``path`` exists, or float16 can't hold the weights.
    """
    path = Path(path)
    check_target(path, "public", overwrite)
    family_of(net)  # refuses what could not be rebuilt
    state = stored_state(net, half)
    sidecar = path.with_name(path.name + SIDECAR_SUFFIX)
    card = path.with_name(f"{path.name}.md")
    # Until the new record is there, the former one makes the file refused, not read wrongly.
    write_tensors(path, state)
    write_json(sidecar, record_of(net, provenance, weights_sha256(path)))
    write_text(card, model_card(net, provenance or {}, "public", path.name))
    return path


def save_diffusers(
    net: Backbone,
    folder: Path | str,
    provenance: dict[str, Any] | None = None,
    half: bool = False,
    vae: Path | None = None,
    scheduler: str = "ddim",
    labels: dict[int, str] | None = None,
    shard_size: str = "10GB",
    overwrite: bool = False,
) -> Path:
    """Write a folder that ``diffusers.DiTPipeline`` loads.

    Without ``vae`` the pipeline is given one when it is loaded:
    ``DiTPipeline.from_pretrained(folder, vae=...)``.

    Args:
        net: a DiT, pruned or not.
        folder: where to; made completely or not at all.
        provenance: how the model came about, as data that JSON can hold.
        half: store the denoiser in float16.
        vae: folder of a diffusers ``AutoencoderKL``, which is copied.
        scheduler: ``"ddim"``, ``"ddpm"`` or ``"dpm"``.
        labels: names of classes, several separated by commas, for ``pipeline.get_label_ids``.
        shard_size: largest weights file, such as ``"2GB"``; larger models are split.
        overwrite: replace an export that is there.

    Raises:
        InputError: ``folder`` exists, ``net`` can't be computed by diffusers, or an unknown
            scheduler.
    """
    folder = Path(folder)
    check_target(folder, "diffusers", overwrite)
    if scheduler not in SCHEDULERS:
        raise InputError(f"scheduler={scheduler!r} is unknown; valid: {', '.join(SCHEDULERS)}")
    files = diffusers_files_of(net)
    state, config = files.write(net)
    state = {name: stored(tensor, half, name) for name, tensor in state.items()}
    convention = convention_of(net)
    import diffusers  # takes seconds

    # Parameters without memory: those of `state` take their place.
    with torch.device("meta"):
        transformer = getattr(diffusers, files.class_names[0])(**config)
    transformer.load_state_dict(state, assign=True)
    transformer.register_to_config(**{PRIVATE_KEY: {"convention": convention}})
    name, settings = SCHEDULERS[scheduler]
    walk = getattr(diffusers, name)(**_PROCESS, **settings)
    # Any: what it inherits from diffusers' mixins has no types.
    pipeline: Any = diffusers.DiTPipeline(transformer, None, walk)
    pipeline.register_to_config(
        vae=("diffusers", "AutoencoderKL") if vae else (None, None),
        id2label={str(i): text for i, text in labels.items()} if labels else None,
    )

    def fill(target: Path) -> None:
        inner = target / TRANSFORMER_FOLDER
        # diffusers remarks on saving; what goes wrong it raises.
        with at_least(logging.ERROR, "diffusers"):
            transformer.save_pretrained(inner, max_shard_size=shard_size)
            walk.save_pretrained(target / "scheduler")
            pipeline.save_config(target)
        if vae is not None:
            _copy_vae(vae, target / "vae")
        record = record_of(net, provenance, weights_sha256(inner))
        record["sampling"] = {
            "pipeline": "DiTPipeline",
            "guidance": net.config()["num_classes"] == NULL_CLASS,
            "null_class": net.null_label,
        }
        write_json(inner / EXPORT_FILE, record)
        card = model_card(net, provenance or {}, "diffusers", folder.name, vae is not None)
        write_text(target / CARD_FILE, card)

    return write_folder_atomic(folder, fill)


def _copy_vae(source: Path, target: Path) -> None:
    """Copy configuration and safetensors weights of an autoencoder, the default variant only."""
    target.mkdir()
    shutil.copyfile(source / CONFIG_FILE, target / CONFIG_FILE)
    for file in sorted(source.glob("diffusion_pytorch_model*")):
        if file.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(file, target / file.name)
