"""The two numbers by which diffusers computes another function of the same weights.

The exponent of the time frequencies is divided by 128 as published and by 127 in diffusers, and
the norm before the MLP has the epsilon 1e-6 as published and 1e-5 by default in diffusers. The
epsilon is stored in diffusers' config; the divisor is fixed in its code and has to be set on the
loaded model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.dit_diffusers import PRIVATE_KEY, STOCK
from tinyfusion.errors import InputError

PUBLISHED = {"frequency_divisor": 128.0, "mlp_norm_eps": 1e-6}
"""How the public DiT code, which trained the published weights, computes."""

NULL_CLASS = 1000
"""What ``DiTPipeline`` takes for the null class, whatever the model."""

_NUM_FREQUENCIES = 128  # half the 256 time features, in diffusers as in the public code


def convention_of(net: Backbone) -> dict[str, float]:
    """The convention that the weights of ``net`` expect: ``frequency_divisor, mlp_norm_eps``.

    Empty for a backbone that has no such numbers, which is computed in one way only.
    """
    arguments = net.config()
    return {key: float(arguments[key]) for key in PUBLISHED if key in arguments}


def use_published_convention(model: Any) -> dict[str, float]:
    """Let a loaded diffusers DiT compute what the public DiT code computes.

    Right for every export of weights that were trained with that code or with this package, and
    for pipelines that others converted from the published files (``facebook/DiT-XL-2-256``).

    Args:
        model: a ``DiTPipeline`` or ``DiTTransformer2DModel``; changed in place.

    Returns:
        The convention now set.

    Raises:
        InputError: ``model`` is no diffusers DiT, or an export whose weights expect another
            convention.
    """
    stated = _recorded(_transformer(model))
    if stated is not None and stated != PUBLISHED:
        raise InputError(
            f"this export says that its weights expect {_in_words(stated)}, not the published "
            f"{_in_words(PUBLISHED)}; call set_convention(pipeline), which sets what it says"
        )
    return set_convention(model, **PUBLISHED)


def set_convention(
    model: Any, frequency_divisor: float | None = None, mlp_norm_eps: float | None = None
) -> dict[str, float]:
    """Set how a loaded diffusers DiT computes time frequencies and the norm before the MLP.

    The numbers are put into the model's config too, so that saving it by ``save_pretrained``
    and loading it with :func:`tinyfusion.load` keeps them.

    Args:
        model: a ``DiTPipeline`` or ``DiTTransformer2DModel``; changed in place.
        frequency_divisor: 128 as published; default: what the export says.
        mlp_norm_eps: 1e-6 as published; default: what the export says.

    Returns:
        The convention now set.

    Raises:
        InputError: ``model`` is no diffusers DiT, a number is not positive, or one is left out and
            the model was not exported by this package.
    """
    transformer = _transformer(model)
    given = {"frequency_divisor": frequency_divisor, "mlp_norm_eps": mlp_norm_eps}
    left_out = [key for key, value in given.items() if value is None]
    stated = _recorded(transformer)
    if left_out and stated is None:
        raise InputError(
            f"{' and '.join(left_out)} must be given: this model was not exported by tinyfusion "
            "and does not say what its weights expect; published weights: "
            "use_published_convention(pipeline)"
        )
    wanted = {}
    for key, value in given.items():
        wanted[key] = value = (stated or {})[key] if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"{key}={value!r}: must be a positive number")
        wanted[key] = float(value)
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = (
            _NUM_FREQUENCIES - wanted["frequency_divisor"]
        )
        block.norm3.eps = wanted["mlp_norm_eps"]
    record = {**dict(transformer.config.get(PRIVATE_KEY) or {}), "convention": wanted}
    transformer.register_to_config(norm_eps=wanted["mlp_norm_eps"], **{PRIVATE_KEY: record})
    return wanted


def _transformer(model: Any) -> Any:
    transformer = getattr(model, "transformer", model)
    try:
        for block in transformer.transformer_blocks:
            _ = block.norm1.emb.time_proj.downscale_freq_shift, block.norm3.eps
        _ = transformer.config.get, transformer.register_to_config
    except AttributeError:
        raise InputError(
            f"a {type(model).__name__} has no convention to set; valid: a DiTPipeline or a "
            "DiTTransformer2DModel of diffusers"
        ) from None
    return transformer


def _recorded(transformer: Any) -> dict[str, float] | None:
    """The convention in the config of an export, ``None`` for other models."""
    record = transformer.config.get(PRIVATE_KEY)
    found = record.get("convention") if isinstance(record, Mapping) else None
    return dict(found) if isinstance(found, Mapping) and set(found) == set(PUBLISHED) else None


def _in_words(convention: Mapping[str, float]) -> str:
    return (
        f"frequency divisor {convention['frequency_divisor']:g} and norm epsilon "
        f"{convention['mlp_norm_eps']:g}"
    )


def call_after_loading(net: Backbone) -> str | None:
    """The function of this package that a loaded diffusers export of ``net`` needs, if any."""
    convention = convention_of(net)
    if convention["frequency_divisor"] == STOCK["frequency_divisor"]:
        return None  # the epsilon is in its config
    return "use_published_convention" if convention == PUBLISHED else "set_convention"


def convention_note(net: Backbone, layout: str) -> str:
    """What the reader of an export has to know of its convention, in one sentence if any.

    Args:
        net: the exported model.
        layout: ``"ours"``, ``"public"`` or ``"diffusers"``.
    """
    convention = convention_of(net)
    if not convention:
        return ""
    expects = f"These weights expect {_in_words(convention)}"
    if layout == "diffusers":
        call = call_after_loading(net)
        if call is None:
            return f"{expects}, which is how diffusers computes them."
        return (
            f"{expects}; diffusers by itself computes with {STOCK['frequency_divisor']:g}, so "
            f"after loading call tinyfusion.{call}(pipeline)."
        )
    if layout == "public" and convention != PUBLISHED:
        return (
            f"{expects}, as the record beside them says; the public code computes with "
            f"{_in_words(PUBLISHED)} and would give other outputs."
        )
    return f"{expects}{', as published' if convention == PUBLISHED else ''}."


def guidance_note(net: Backbone) -> str:
    """How ``DiTPipeline`` can sample ``net``, in one sentence."""
    classes = net.config()["num_classes"]
    if classes == NULL_CLASS:
        return (
            "DiTPipeline samples it with guidance on all latent channels (the published samples "
            "guide the first three) and ignores the variance half of the output."
        )
    return (
        f"DiTPipeline takes class {NULL_CLASS} for the null class, but this model has {classes} "
        f"classes and the null class {classes}: it samples there without guidance only, with "
        "guidance_scale=1."
    )
