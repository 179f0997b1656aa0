"""The model card: what a model is, how it came about, and how to load it.

``card.md`` beside this file is the template; here are the values of its fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyfusion.backbones.contract import Backbone, count_parameters
from tinyfusion.backbones.presets import FAMILIES, family_of
from tinyfusion.checkpoints.convention import (
    NULL_CLASS,
    call_after_loading,
    convention_note,
    guidance_note,
)
from tinyfusion.version import __version__

CARD_MARK = "<!-- written by tinyfusion -->"
"""Stands in every card of ours; only in such cards does publishing insert the hub id."""

_TEMPLATE = Path(__file__).with_name("card.md")
_FIGURES = {
    "fid": "FID",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "held_out_loss": "held-out loss",
    "teacher_distance": "distance to the teacher",
    "depth": "blocks",
    "parameters": "parameters",
    "macs": "multiply-adds per sample",
    "images_per_s": "images per second",
}
_ARGUMENTS = {"hidden_size": "width {}", "num_heads": "{} heads", "patch_size": "patch size {}"}
_TINYFUSION = """@article{fang2024tinyfusion,
  title={TinyFusion: Diffusion Transformers Learned Shallow},
  author={Fang, Gongfan and Li, Kunjun and Ma, Xinyin and Wang, Xinchao},
  journal={arXiv preprint arXiv:2412.01199},
  year={2024}
}"""


def model_card(
    net: Backbone,
    provenance: Mapping[str, Any],
    layout: str,
    name: str,
    has_vae: bool = True,
) -> str:
    """Text of a model card with front matter for the Hugging Face hub.

    Args:
        net: the model.
        provenance: how it came about, as :func:`~tinyfusion.checkpoints.lineage.lineage` gives.
        layout: ``"ours"``, ``"public"`` or ``"diffusers"``.
        name: of the folder or file that the card belongs to.
        has_vae: whether a diffusers folder holds an autoencoder.

    Returns:
        Markdown. No license is stated: that is for whoever publishes the weights to do.
    """
    from huggingface_hub import ModelCard, ModelCardData  # slow to import

    family, is_diffusers = family_of(net), layout == "diffusers"
    narrowed_by = _narrowed_by(provenance)
    tags = ["tinyfusion", family, "diffusion", "image-generation", "class-conditional"]
    if net.kept_from is not None or narrowed_by is not None:
        tags.append("pruned")
    tags += ["depth-pruning"] * (net.kept_from is not None)
    tags += ["width-pruning"] * (narrowed_by is not None)
    columns, rows = _figures(provenance)
    card = ModelCard.from_template(
        ModelCardData(library_name="diffusers" if is_diffusers else "tinyfusion", tags=tags),
        template_path=str(_TEMPLATE),
        mark=CARD_MARK,
        layout=layout,
        name=name,
        title=Path(name).stem if layout == "public" else name,
        summary=_summary(net, narrowed_by),
        origin=[(label, value) for label, value in _origin(net, provenance) if value],
        columns=columns,
        rows=rows,
        protocol=_settings(provenance.get("protocol")),
        convention=convention_note(net, layout),
        call=call_after_loading(net) if is_diffusers else None,
        guidance=guidance_note(net) if is_diffusers else None,
        has_vae=has_vae,
        channels=net.in_channels,
        scale=4.0 if net.num_classes == NULL_CLASS else 1.0,
        # A class from outside this package is imported only if the caller names it.
        named="" if family in FAMILIES else f', backbone="{family}"',
        class_name=type(net).__name__,
        depths=_depths(net),
        papers=[_TINYFUSION, *([net.public_files.citation] if net.public_files else [])],
    )
    return f"{card}\n"


def _summary(net: Backbone, narrowed_by: str | None) -> str:
    arguments, channels = net.config(), net.in_channels
    words = [
        text.format(arguments[key])
        for key, text in _ARGUMENTS.items()
        if arguments.get(key) is not None
    ]
    sizes = f" ({', '.join(words)})" if words else ""
    narrowed = f", pruned in width by {narrowed_by}" if narrowed_by is not None else ""
    pruned = ", pruned in depth with [TinyFusion](https://arxiv.org/abs/2412.01199)"
    gone = len(net.removed_branches)
    less = f" (less {gone} branch{'es' if gone > 1 else ''} of them)" if gone else ""
    return (
        f"A {type(net).__name__} of {net.depth} blocks{less} and {count_parameters(net):,} "
        f"parameters for {net.input_size}x{net.input_size} inputs of {channels} "
        f"channel{'s' if channels > 1 else ''} and {net.num_classes} classes{sizes}{narrowed}"
        f"{'' if net.kept_from is None else pruned}."
    )


def _narrowed_by(provenance: Mapping[str, Any]) -> str | None:
    """Method that pruned the model in width; ``None`` for one that was not."""
    decision = _decision(provenance)
    return str(decision.get("method")) if decision.get("widths") else None


def _decision(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recorded decision; empty if there is none."""
    decision = provenance.get("decision")
    return decision if isinstance(decision, Mapping) else {}


def _origin(net: Backbone, provenance: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Rows about where the model comes from: label and text, empty where nothing is known."""
    decision = _decision(provenance)
    recovered = provenance.get("recovered_from")
    source = provenance.get("pruned_from") or recovered
    digest = provenance.get("source_sha256") or decision.get("source_sha256")
    depth = decision.get("source_depth")
    if net.kept_from is not None or decision.get("widths"):
        of = f", {depth} blocks" if depth and net.kept_from is not None else ""
        yield "Pruned from", source and f"`{_public(source)}`{of}"
        yield "SHA-256 of its weights", digest and f"`{digest}`"
        yield "Method", decision.get("method")
    if net.kept_from is not None:
        yield "Scheme", _scheme(decision.get("scheme"))
        yield "Kept blocks", _listed(net.kept_from)
        if depth and list(net.kept_from) == decision.get("kept"):
            yield "Dropped blocks", _listed(i for i in range(depth) if i not in net.kept_from)
        yield "Removed branches", _listed(net.removed_branches)
        yield "Budget", _settings(decision.get("budget"))
    elif decision.get("widths"):
        before = decision.get("source_widths") or {}
        cut = (f"{key} {before.get(key)} to {n}" for key, n in decision["widths"].items())
        yield "Widths", _listed(cut)
        yield "Parameters removed", f"{100 * decision.get('reached', 0):.1f} %"
    if recovered:
        yield "Recovery", _training(provenance)
        recipe = provenance.get("recovery")
        recipe = recipe if isinstance(recipe, Mapping) else {}
        yield "Recovery objective", _settings(recipe.get("objective"))
    elif provenance.get("steps"):
        yield "Training", _training(provenance)
    elif provenance.get("pruned_from"):
        yield "Recovery", "none: these are the weights of the source, cut"
    imported = provenance.get("converted_from")
    if isinstance(imported, Mapping):
        yield "Converted from", f"`{imported.get('name')}` ({imported.get('layout')})"
        yield "SHA-256 of the converted weights", f"`{imported.get('sha256')}`"
    yield "Made with", f"tinyfusion {__version__}"


def _training(provenance: Mapping[str, Any]) -> str:
    words = []
    if provenance.get("steps"):
        words.append(f"{provenance['steps']:,} steps")
    if provenance.get("images_seen"):
        words.append(f"{provenance['images_seen']:,} images seen")
    if provenance.get("weights"):
        words.append(f"{provenance['weights']} weights")
    if provenance.get("seed") is not None:
        words.append(f"seed {provenance['seed']}")
    return ", ".join(words) or "yes"


def _figures(provenance: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of metrics; no rows if none are known."""
    found = {"this model": provenance.get("metrics"), "source": provenance.get("source_metrics")}
    known = {name: row for name, row in found.items() if isinstance(row, Mapping) and row}
    rows = [
        [label, *(_number(row.get(key)) for row in known.values())]
        for key, label in _FIGURES.items()
        if any(isinstance(row.get(key), int | float) for row in known.values())
    ]
    return ["", *known], rows


def _depths(net: Backbone) -> str:
    """Constructor arguments that say how many blocks there are."""
    arguments = net.config()
    given = [f"{key}={arguments[key]}" for key in net.depth_arguments if key in arguments]
    return ", ".join(given or [f"depth={net.depth}"])


def _listed(indices: Iterable[Any]) -> str:
    return ", ".join(map(str, indices))


def _scheme(scheme: Any) -> str | None:
    """``[[1, 2], [1, 2]]`` as ``1:2, 1:2``, shortened where all groups are alike."""
    if not isinstance(scheme, list):
        return None if scheme is None else str(scheme)
    groups = [":".join(map(str, group)) for group in scheme]
    if len(set(groups)) == 1 and len(groups) > 1:
        return f"{groups[0]} in each of {len(groups)} groups"
    return ", ".join(groups)


def _settings(values: Any) -> str:
    """``key value`` pairs in a line, without those that are not set."""
    if not isinstance(values, Mapping):
        return ""
    texts = {
        key: ", ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in values.items()
        if value is not None
    }
    return "; ".join(f"{key} {value}" for key, value in texts.items())


def _number(value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _public(path: Any) -> str:
    """A source as the user typed it, but of an absolute path only the end: cards are published."""
    text = str(path)
    return "/".join(Path(text).parts[-2:]) if Path(text).is_absolute() else text
