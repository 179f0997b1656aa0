"""What `tinyfusion benchmark` times: presets, checkpoints, and cuts of the first of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import ListConfig
from torch import nn

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import (
    FAMILIES,
    PRESETS,
    build,
    build_empty,
    family_of,
    preset,
    preset_family,
)
from tinyfusion.checkpoints.locate import PACKAGED
from tinyfusion.commands.loading import load
from tinyfusion.errors import InputError
from tinyfusion.metrics.memory import bytes_of
from tinyfusion.processes.contract import Process
from tinyfusion.pruners.diff_pruning import DiffPruning
from tinyfusion.scheme import evenly_spaced
from tinyfusion.seeding import seed_of
from tinyfusion.settings.objects import Objects
from tinyfusion.text import readable_bytes

DEPTH, WIDTH = "depth", "width"

NARROWED = ("hidden_size", "num_heads", "input_size")
"""Keys that change the sizes of presets."""


@dataclass(frozen=True)
class Subject:
    """A network to be timed.

    Attributes:
        name: what it is called in tables.
        net: the network: a checkpoint's with its weights; else on the meta device until `ready`.
        arguments: family and constructor arguments, for random weights; ``None`` for a checkpoint.
        preset: of a preset that was narrowed, the network as published, on the meta device.
        cut: ``"depth"`` or ``"width"`` for a cut of the first network.
        label: of a cut, what is left: blocks or width.
        kept: blocks of the first network that a cut in depth keeps.
    """

    name: str
    net: Backbone
    arguments: dict[str, Any] | None = None
    preset: Backbone | None = None
    cut: str | None = None
    label: str = ""
    kept: tuple[int, ...] = ()


def planned_subjects(
    objects: Objects,
    models: Any,
    sizes: Mapping[str, int],
    depths: Sequence[int] | None = None,
    widths: Sequence[float] | None = None,
) -> list[Subject]:
    """Everything that is to be timed, without weights where they will be random.

    Args:
        objects: the command's.
        models: presets and checkpoints; ``None`` for the command's checkpoint.
        sizes: what presets are narrowed to, keys of `NARROWED`.
        depths: numbers of blocks that the first network is cut to.
        widths: shares of its parameters that the first network loses by cut widths.

    Raises:
        InputError: a model, depth, width or size that can't be, or models that can't be compared.
    """
    models = [objects.checkpoint] if models is None else models
    is_list = isinstance(models, list | ListConfig) and models
    if not is_list or any(not isinstance(model, str) for model in models):
        raise InputError(
            f"models={_listed(models)}: valid is a list of presets and checkpoints, such as "
            "models=[dit_xl_2,dit_xl_2_d14]"
        )
    models = list(models)
    doubled = [model for model in models if models.count(model) > 1]
    if doubled:
        raise InputError(f"models={_listed(models)}: {doubled[0]!r} is listed more than once")
    useless = [key for key in sizes if key != "num_heads"]
    if useless and not any(map(_is_preset, models)):
        raise InputError(
            f"{useless[0]}={sizes[useless[0]]} narrows presets, but there is none in "
            f"models={_listed(models)}; a checkpoint is timed as it is"
        )
    found = [
        _of_preset(objects.process, model, sizes)
        if _is_preset(model)
        else _of_checkpoint(objects, model)
        for model in models
    ]
    names = short_names(models)
    subjects = [replace(s, name=name) for s, name in zip(found, names, strict=True)]
    for subject in subjects[1:]:
        _check_comparable(subjects[0], subject)
    subjects += _depths(subjects[0], depths)
    subjects += _widths(subjects[0], widths)
    for subject in subjects:
        alike = [other for other in subjects if other.name == subject.name]
        if len(alike) > 1:
            raise InputError(
                f"{subject.cut}s={_listed(depths if subject.cut == DEPTH else widths)}: more than "
                "one of these is "
                f"{subject.name}; leave all but one out"
            )
    return subjects


def short_names(models: Sequence[str]) -> list[str]:
    """Last parts of paths, as many as tell them apart: ``a/recovered``, ``b/recovered``."""
    parts = [Path(model).parts if Path(model).is_absolute() else (model,) for model in models]
    names = []
    for own in parts:
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in parts) > 1:
            count += 1
        names.append("/".join(own[-count:]))
    return names


def _is_preset(model: str) -> bool:
    # Some packaged models have the name of their preset: then they are meant, as everywhere.
    return model in PRESETS and model not in PACKAGED


def _of_preset(process: Process, name: str, sizes: Mapping[str, int]) -> Subject:
    published = {"backbone": preset_family(name), **preset(name)}
    arguments = {**published, **sizes}
    net = _on_meta(arguments, f"models: {name} with {_sizes_in_words(sizes)}" if sizes else name)
    process.check(net, f"models: {name}")
    as_published = _on_meta(published, name) if arguments != published else None
    return Subject(name, net, arguments, as_published)


def _of_checkpoint(objects: Objects, model: str) -> Subject:
    if model in FAMILIES:
        ours = ", ".join(name for name in PRESETS if preset_family(name) == model)
        raise InputError(f"models: {model!r} does not say how large; valid: {ours}")
    try:
        net = load(objects, model, key="models")
    except InputError as error:
        if Path(model).exists() or model in PACKAGED:
            raise InputError(f"models: {error}") from None
        raise InputError(f"models: {error}, or a preset: {', '.join(PRESETS)}") from None
    return Subject(model, net)


def _check_comparable(first: Subject, other: Subject) -> None:
    """Refuse networks that sample other data.

    Raises:
        InputError: they sample data of another shape.
    """
    shapes = [(s.net.in_channels, s.net.input_size, s.net.input_size) for s in (first, other)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"models: {first.name} samples data of shape {shapes[0]}, {other.name} of {shapes[1]}: "
            "their speeds can't be compared; time them by two commands"
        )


def _depths(first: Subject, depths: Sequence[int] | None) -> Iterator[Subject]:
    """The first network with fewer blocks, evenly spaced ones, so that each stack has its share."""
    for depth in depths or ():
        if not 0 < depth < first.net.depth:
            raise InputError(
                f"depths={_listed(depths)}: {depth} must be between 1 and {first.net.depth - 1}, "
                f"as {first.name} has {first.net.depth} blocks"
            )
        kept = evenly_spaced(first.net.depth, depth)
        net = _on_meta(_arguments(first), first.name)
        net.keep_blocks(kept)
        name = f"{first.name}, {depth} blocks"
        yield Subject(name, net, cut=DEPTH, label=str(depth), kept=kept)


def _widths(first: Subject, ratios: Sequence[float] | None) -> Iterator[Subject]:
    """The first network with as many blocks, but narrower ones."""
    arguments = _arguments(first)
    for ratio in ratios or ():
        if not 0 < ratio < 1:
            raise InputError(
                f"widths={_listed(ratios)}: {ratio} must be above 0 and below 1: the share of the "
                "parameters that goes"
            )
        full = _on_meta(arguments, first.name)
        try:
            widths = DiffPruning(ratio=ratio).resizing(full).widths
        except InputError as error:
            raise InputError(f"widths={_listed(ratios)}: {error}") from None
        narrow = {**arguments, **full.width_plan().fixed, **widths}
        label = str(next(iter(widths.values())))
        name = f"{first.name}, width {label}"
        yield Subject(name, _on_meta(narrow, name), narrow, cut=WIDTH, label=label)


def check_memory(subjects: Sequence[Subject], available: int | None, device: torch.device) -> None:
    """Refuse networks whose weights don't fit into memory together; all are held at once.

    Args:
        subjects: what is planned.
        available: free bytes of the device; ``None`` if unknown.
        device: where they will be.

    Raises:
        InputError: the weights of all networks take more bytes than are available.
    """
    needed = sum(bytes_of(s.net) for s in subjects if s.cut != DEPTH)
    if available is not None and needed > available:
        raise InputError(
            f"models: the weights of the {len(subjects)} networks take {readable_bytes(needed)} "
            f"together, and {device.type} has {readable_bytes(available)} free; name fewer in "
            "models= and widths=, or narrow them by hidden_size="
        )


def ready(subjects: Sequence[Subject], device: torch.device, seed: int) -> dict[str, Backbone]:
    """The networks by name, in eval mode on a device.

    Cuts in depth share the weights of the first network. Other networks without a checkpoint get
    the start values of their class, and random values where those are all zero (the gates of a
    new DiT): some devices compute faster with zeros.

    Args:
        subjects: what is planned.
        device: where to.
        seed: of the random weights.
    """
    nets: dict[str, Backbone] = {}
    for subject in subjects:
        if subject.cut == DEPTH:
            net = _sharing(nets[subjects[0].name], subject.kept)
        elif subject.arguments is None:
            net = subject.net.to(device)
        else:
            net = random_weights(subject.arguments, device, seed_of(seed, "benchmark"))
        nets[subject.name] = net.eval()
    return nets


def random_weights(arguments: Mapping[str, Any], device: torch.device, seed: int) -> Backbone:
    """A network with random weights, none of its tensors all zero; see `ready`."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        with device:
            net = build(arguments)
        for parameter in net.parameters():
            if parameter.requires_grad and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return net


def _sharing(net: Backbone, kept: Sequence[int]) -> Backbone:
    """Some blocks of a network as one of their own, with the same tensors."""
    held = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    shallow = copy.deepcopy(net, held)
    shallow.keep_blocks(kept)
    return shallow


def _arguments(subject: Subject) -> dict[str, Any]:
    if subject.arguments is not None:
        return subject.arguments
    return {"backbone": family_of(subject.net), **subject.net.config()}


def _on_meta(arguments: Mapping[str, Any], name: str) -> Backbone:
    """A network without values.

    Raises:
        InputError: sizes that can't be.
    """
    try:
        with torch.device("meta"):
            return build_empty(arguments)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _sizes_in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sizes.items())


def _listed(values: Any) -> str:
    if not isinstance(values, list | ListConfig):
        return str(values)
    return f"[{','.join('null' if value is None else str(value) for value in values)}]"
