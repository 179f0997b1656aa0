"""The work of ``tinyfusion convert``: a checkpoint in another layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.contract import Backbone, count_parameters
from tinyfusion.checkpoints.checkpoint import Checkpoint
from tinyfusion.checkpoints.construct import to_backbone
from tinyfusion.checkpoints.convention import convention_note, guidance_note
from tinyfusion.checkpoints.diffusers_folder import diffusers_files_of
from tinyfusion.checkpoints.export import save_diffusers, save_ours, save_public
from tinyfusion.checkpoints.lineage import lineage
from tinyfusion.checkpoints.locate import PACKAGED
from tinyfusion.checkpoints.read import read_checkpoint
from tinyfusion.checkpoints.target import check_target
from tinyfusion.errors import InputError
from tinyfusion.files import read_json


def convert(
    source: str,
    target: str,
    to: str,
    half: bool = False,
    overwrite: bool = False,
    backbone: str | None = None,
    num_heads: int | None = None,
    vae: str | None = None,
    vae_subfolder: str | None = None,
    scheduler: str = "ddim",
    labels: str | None = None,
    weights: str | None = None,
) -> Path:
    """Write a checkpoint in another layout and print what was written.

    Args:
        source: anything that :func:`tinyfusion.load` reads.
        target: file or folder to write.
        to: ``"ours"``, ``"public"`` or ``"diffusers"``.
        half: store float16.
        overwrite: replace a model at ``target``.
        backbone: as for :func:`tinyfusion.load`.
        num_heads: as for :func:`tinyfusion.load`.
        vae: folder or hub id of an autoencoder, for ``to="diffusers"``.
        vae_subfolder: folder inside ``vae``.
        scheduler: key of :data:`~tinyfusion.checkpoints.export.SCHEDULERS`.
        labels: ``"imagenet"`` or a JSON file.
        weights: as for :func:`tinyfusion.load`.

    Returns:
        ``target``.

    Raises:
        InputError: the source can't be read, the target may not be written, or the layout can't
            hold the model.
    """
    place = Path(target).expanduser()
    check_target(place, to, overwrite)
    _check_apart(source, place)
    try:
        checkpoint = read_checkpoint(source, weights)
        net = to_backbone(checkpoint, backbone, num_heads, release=True)
    except InputError as error:
        text = str(error).replace("give num_heads=", "give --num-heads")
        raise InputError(text.replace("weights=", "--weights ")) from None
    if to == "diffusers":
        diffusers_files_of(net).check(net)
    provenance = lineage(checkpoint)
    provenance.setdefault("converted_from", _origin(source, checkpoint))
    try:
        if to == "ours":
            save_ours(net, place, provenance, half, overwrite)
        elif to == "public":
            save_public(net, place, provenance, half, overwrite)
        else:
            save_diffusers(
                net,
                place,
                provenance,
                half,
                vae=None if vae is None else _vae_folder(vae, vae_subfolder, net),
                scheduler=scheduler,
                labels=None if labels is None else _labels(labels, net),
                overwrite=overwrite,
            )
    except OSError as error:
        raise InputError(f"{place} could not be written: {error}") from None
    _report(net, place, to, half, has_vae=vae is not None)
    return place


def _check_apart(source: str, target: Path) -> None:
    """Refuse to write over, into or around what is being read."""
    found = Path(source).expanduser()
    if not source or not found.exists():
        return
    a, b = found.resolve(), target.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise InputError(f"DST={target} and SRC={source} overlap; give a place apart from SRC")


def _origin(source: str, checkpoint: Checkpoint) -> dict[str, Any]:
    # Of a local path only the end: it is published with the model.
    local = source not in PACKAGED and Path(source).expanduser().exists()
    name = "/".join(Path(source).expanduser().absolute().parts[-2:]) if local else source
    return {"name": name, "layout": checkpoint.layout, "sha256": checkpoint.sha256}


def _vae_folder(path: str, subfolder: str | None, net: Backbone) -> Path:
    """Local folder of an autoencoder that was seen to work for this model's latents."""
    import torch

    try:
        inner = Path(path).expanduser() / "vae" / "config.json"
        if subfolder is None and not inner.parent.with_name("config.json").is_file():
            subfolder = "vae" if inner.is_file() else None
        autoencoder = Autoencoder(path, subfolder)
        channels = net.in_channels
        if autoencoder.channels != channels:
            raise InputError(
                f"autoencoder.path={path!r} has latents of {autoencoder.channels} channels, but "
                f"the model has {channels}"
            )
        autoencoder.decode(torch.zeros(1, channels, 2, 2))
    except InputError as error:
        text = str(error).replace("autoencoder.path=", "--vae ")
        raise InputError(text.replace("autoencoder.subfolder=", "--vae-subfolder ")) from None
    return autoencoder.folder


def _labels(source: str, net: Backbone) -> dict[int, str]:
    """Names by class index."""
    if source == "imagenet":
        # The names come with torchvision's code, not with its weights.
        from torchvision.models import ResNet18_Weights

        names = list(ResNet18_Weights.DEFAULT.meta["categories"])
    else:
        content = read_json(source, "labels")
        if isinstance(content, dict) and set(content) == {str(i) for i in range(len(content))}:
            content = [content[str(i)] for i in range(len(content))]
        if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
            raise InputError(
                f"--labels {source}: must hold a list of names, or names by class index "
                '({"0": ...})'
            )
        names = content
    classes = net.num_classes
    if len(names) != classes:
        raise InputError(
            f"--labels {source}: {len(names)} names, but the model has {classes} classes"
        )
    return dict(enumerate(names))


def _report(net: Backbone, place: Path, to: str, half: bool, has_vae: bool) -> None:
    kept = "" if net.kept_from is None else f", kept from {', '.join(map(str, net.kept_from))}"
    if net.removed_branches:
        kept += f", without {', '.join(net.removed_branches)}"
    print(
        f"wrote {place} ({to}): {net.depth} blocks{kept}; {count_parameters(net):,} parameters, "
        f"{'float16' if half else 'float32'}"
    )
    note = convention_note(net, to)
    if note:
        print(f"convention: {note}")
    if to == "diffusers":
        print(f"sampling: {guidance_note(net)}")
        if not has_vae:
            print(
                "autoencoder: none put in; give one with --vae, or when loading: "
                f"DiTPipeline.from_pretrained({str(place)!r}, vae=...)"
            )
    card = place.with_name(f"{place.name}.md") if to == "public" else place / "README.md"
    print(f"card: {card}")
