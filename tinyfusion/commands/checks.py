"""What is refused before work starts: data and samplers that don't fit the model."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.contract import Backbone
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.processes.contract import Process
from tinyfusion.samplers.contract import Sampler, check_sampler
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.settings.compose import locate, plain
from tinyfusion.settings.overview import choices, conf_folder


def check_data(net: Backbone, source: ImageSource, name: str) -> None:
    """Refuse a model and data that don't fit each other.

    Args:
        net: the model.
        source: the data.
        name: what the model is called in the message.

    Raises:
        InputError: channels, size or number of classes of model and data differ.
    """
    wanted = {
        "in_channels": source.channels,
        "input_size": source.size,
        "num_classes": source.num_classes,
    }
    for key, value in wanted.items():
        found = getattr(net, key)
        if found != value:
            raise InputError(
                f"{name} has {key}={found} but the data has {value}; choose other data "
                "(data=...) or another checkpoint"
            )


def check_latents(source: ImageSource, process: Process) -> None:
    """Refuse to train on latents as if they were pixels.

    Args:
        source: the data.
        process: the process.

    Raises:
        InputError: the data holds latents and the process clamps to the range of pixels.
    """
    if not source.pixels and getattr(process, "clip", False):
        raise InputError(
            "process.clip=true clamps to the range of pixels, but the data holds latents; give "
            f"{_unclamped(process)}"
        )


def check_sampling(
    net: Backbone,
    process: Process,
    key: str,
    sampler: Sampler,
    guidance: Guidance = NO_GUIDANCE,
) -> None:
    """Refuse a sampler or guidance that would fail only when it is used.

    Args:
        net: the model to sample from.
        process: the process.
        key: where the two are configured, for the message.
        sampler: how to sample.
        guidance: classifier-free guidance.

    Raises:
        InputError: a sampler of another kind of process, steps that don't fit the process,
            guidance of a model without null conditioning or in an interval of noise levels that
            the process does not have, or more guided channels than the data
            has.
    """

    def valid() -> str:
        names = _choices_for("sampler", process.kind)
        return f"valid: sampler={', '.join(names) or 'one of your own'}"

    try:
        check_sampler(sampler, process, net, key, valid)
        if guidance.interval is not None:
            process.noise_level(0.0)  # of any time: whether it has one
        if guidance.scale != 1:
            net.example_conditioning().null(net)
    except (InputError, NotImplementedError) as error:
        # What is wrong may be named in full already.
        led = str(error).startswith((f"{key}.", f"{key}:"))
        raise InputError(f"{error}" if led else f"{key}: {error}") from None
    available = net.in_channels
    if guidance.channels is not None and guidance.channels > available:
        raise InputError(
            f"{key}: guidance channels={guidance.channels}, but the data has {available} "
            f"channel(s); valid: 1 to {available}, or null for all"
        )


def _choices_for(group: str, kind: str, **values: Any) -> list[str]:
    """Shipped choices of a group that are made for a kind of process and have these values."""
    found = []
    for name in choices(group):
        node = plain(OmegaConf.load(conf_folder() / group / f"{name}.yaml"))
        target = locate(node["_target_"], group)
        made_for = getattr(target, "process_kind", None) or getattr(target, "kind", None)
        if made_for == kind and all(node.get(key) == value for key, value in values.items()):
            found.append(name)
    return found


def _unclamped(process: Process) -> str:
    """What to write on the command line instead of a process that clamps, for latents."""
    names = _choices_for("process", process.kind, clip=False)
    return " or ".join(f"process={name}" for name in names) or "process.clip=false"


def decoder_for(channels: int) -> str:
    """What to write on the command line to decode latents of so many channels."""
    return f"autoencoder={'sd_vae_ft_ema' if channels == 4 else 'kl autoencoder.path=FOLDER'}"


def check_decoder(
    net: Backbone,
    process: Process,
    decoder: Autoencoder | None,
    source: ImageSource | None = None,
) -> None:
    """Refuse a model whose samples can't be made into pictures.

    Args:
        net: the model to sample from.
        process: the process.
        decoder: of latents; ``None`` for a model of pixels.
        source: the data that the model is trained on, if it is.

    Raises:
        InputError: channels that are no picture's, a decoder of latents with other channels or
            another scale, or a process that clamps latents as if they were pixels.
    """
    channels = net.in_channels
    if decoder is None:
        if channels not in (1, 3):
            more = f" {_unclamped(process)}" if getattr(process, "clip", False) else ""
            raise InputError(
                f"the model has in_channels={channels}, so its samples are latents: give their "
                f"decoder ({decoder_for(channels)}{more})"
            )
        return
    if channels != decoder.channels:
        raise InputError(
            f"autoencoder: decodes latents of {decoder.channels} channels, but the model has "
            f"in_channels={channels}; choose another autoencoder, or none for a model of pixels"
        )
    if getattr(process, "clip", False):
        raise InputError(
            "process.clip=true clamps to the range of pixels, but autoencoder= says that the model "
            f"is one of latents; give {_unclamped(process)}"
        )
    scale = getattr(source, "scale", None)
    if scale not in (None, decoder.scale):
        raise InputError(
            f"autoencoder: has scaling_factor {decoder.scale}, but the data was encoded with "
            f"{scale}; choose the autoencoder that made the latents"
        )
