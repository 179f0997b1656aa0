"""The model card: what a model is, how it came about, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
"""Stands in every card of ours: in these, publishing puts in the name to load by."""

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
    parts = [
        _front_matter(net, layout, _narrowed_by(provenance) is not None),
        f"{CARD_MARK}\n\n# {Path(name).stem if layout == 'public' else name}",
        _summary(net, provenance),
        *_origin(net, provenance),
        *_figures(provenance),
        *_convention(net, layout),
        "## Loading\n\n" + _loading(net, layout, name, has_vae),
        "## License\n\nNot stated yet. Weights that were derived from others are bound by the "
        "license of those: add it here and as `license:` in the front matter.",
        "## Citation\n\n```bibtex\n" + "\n".join(_papers(net)) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(net: Backbone, layout: str, width_pruned: bool) -> str:
    from huggingface_hub import ModelCardData  # slow to import

    tags = ["tinyfusion", family_of(net), "diffusion", "image-generation", "class-conditional"]
    if net.kept_from is not None:
        tags += ["pruned", "depth-pruning"]
    if width_pruned:
        tags += [tag for tag in ("pruned", "width-pruning") if tag not in tags]
    library = "diffusers" if layout == "diffusers" else "tinyfusion"
    return f"---\n{ModelCardData(library_name=library, tags=tags).to_yaml().strip()}\n---"


def _summary(net: Backbone, provenance: Mapping[str, Any]) -> str:
    arguments = net.config()
    size, channels = net.input_size, net.in_channels
    words = [
        text.format(arguments[key])
        for key, text in _ARGUMENTS.items()
        if arguments.get(key) is not None
    ]
    first = (
        f"A {type(net).__name__} of {net.depth} blocks and {count_parameters(net):,} parameters "
        f"for {size}x{size} inputs of {channels} channel{'s' if channels > 1 else ''} and "
        f"{net.num_classes} classes" + (f" ({', '.join(words)})" if words else "")
    )
    method = _narrowed_by(provenance)
    if method is not None:
        first += f", pruned in width by {method}"
    if net.kept_from is None:
        return f"{first}."
    return f"{first}, pruned in depth with [TinyFusion](https://arxiv.org/abs/2412.01199)."


def _narrowed_by(provenance: Mapping[str, Any]) -> str | None:
    """Method that pruned the model in width; ``None`` for one that was not."""
    decision = provenance.get("decision")
    narrowed = isinstance(decision, Mapping) and decision.get("widths")
    return str(decision.get("method")) if narrowed else None


def _origin(net: Backbone, provenance: Mapping[str, Any]) -> list[str]:
    """The section on where the model comes from, if anything is known."""
    lines: list[str] = []

    def add(label: str, value: Any) -> None:
        if value not in (None, "", [], {}):
            lines.append(f"- **{label}**: {value}")

    decision = provenance.get("decision")
    decision = decision if isinstance(decision, Mapping) else {}
    recovered = provenance.get("recovered_from")
    source = provenance.get("pruned_from") or recovered
    digest = provenance.get("source_sha256") or decision.get("source_sha256")
    if net.kept_from is not None:
        depth = decision.get("source_depth")
        of = f", {depth} blocks" if depth else ""
        add("Pruned from", source and f"`{_public(source)}`{of}")
        add("SHA-256 of its weights", digest and f"`{digest}`")
        add("Method", decision.get("method"))
        add("Scheme", _scheme(decision.get("scheme")))
        add("Kept blocks", _listed(net.kept_from))
        if depth and list(net.kept_from) == decision.get("kept"):
            add("Dropped blocks", _listed([i for i in range(depth) if i not in net.kept_from]))
    elif decision.get("widths"):
        add("Pruned from", source and f"`{_public(source)}`")
        add("SHA-256 of its weights", digest and f"`{digest}`")
        add("Method", decision.get("method"))
        before = decision.get("source_widths") or {}
        add(
            "Widths",
            _listed(f"{key} {before.get(key)} to {n}" for key, n in decision["widths"].items()),
        )
        add("Parameters removed", f"{100 * decision.get('reached', 0):.1f} %")
    if recovered:
        add("Recovery", _training(provenance))
        recipe = provenance.get("recovery")
        recipe = recipe if isinstance(recipe, Mapping) else {}
        add("Recovery objective", _settings(recipe.get("objective")))
    elif provenance.get("steps"):
        add("Training", _training(provenance))
    elif provenance.get("pruned_from"):
        add("Recovery", "none: these are the weights of the source, cut")
    imported = provenance.get("converted_from")
    if isinstance(imported, Mapping):
        add("Converted from", f"`{imported.get('name')}` ({imported.get('layout')})")
        add("SHA-256 of the converted weights", f"`{imported.get('sha256')}`")
    add("Made with", f"tinyfusion {__version__}")
    return ["## How it came about\n\n" + "\n".join(lines)]


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


def _figures(provenance: Mapping[str, Any]) -> list[str]:
    """The section on metrics; nothing if none are known."""
    columns = {"this model": provenance.get("metrics"), "source": provenance.get("source_metrics")}
    columns = {name: row for name, row in columns.items() if isinstance(row, Mapping) and row}
    rows = [
        [label, *(_number(row.get(key)) for row in columns.values())]
        for key, label in _FIGURES.items()
        if any(isinstance(row.get(key), int | float) for row in columns.values())
    ]
    if not rows:
        return []
    table = [["", *columns], ["---", *["---:"] * len(columns)], *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    protocol = provenance.get("protocol")
    if isinstance(protocol, Mapping) and protocol:
        text += f"\n\nProtocol: {_settings(protocol)}."
    return [f"## Metrics\n\n{text}"]


def _papers(net: Backbone) -> list[str]:
    files = net.public_files
    return [_TINYFUSION] if files is None else [_TINYFUSION, files.citation]


def _convention(net: Backbone, layout: str) -> list[str]:
    """The section on what shapes don't show; nothing if there is nothing of the kind."""
    text = convention_note(net, layout)
    if not text:
        return []
    if layout == "diffusers":
        text = _diffusers_convention(net, text)
    return [f"## Convention\n\n{text}"]


def _diffusers_convention(net: Backbone, text: str) -> str:
    if call_after_loading(net):
        text += (
            " The norm epsilon is in the config; the frequency divisor has no place there. "
            "Without the call the samples are other ones."
        )
    return f"{text} {guidance_note(net)}"


def _loading(net: Backbone, layout: str, name: str, has_vae: bool) -> str:
    family = family_of(net)
    # A class of somebody's own is imported only for who names it.
    named = "" if family in FAMILIES else f', backbone="{family}"'
    loaded = _python(
        "import tinyfusion", "", f'net = tinyfusion.load("{name}"{named})  # eval, float32'
    )
    if layout == "ours":
        return loaded
    if layout == "public":
        return (
            loaded + f"\n\nThe file is a bare state dict with the names of the public "
            f"{type(net).__name__} code; there, build the model with "
            f"{_depths(net)}. Keep `{name}.tinyfusion.json` beside it: it holds what a state "
            "dict can't say."
        )
    call = call_after_loading(net)
    scale = 4.0 if net.config()["num_classes"] == NULL_CLASS else 1.0
    imports = ["import tinyfusion"] if call else []
    load = f'pipe = DiTPipeline.from_pretrained("{name}")'
    names = "DiTPipeline"
    if not has_vae:
        names = "AutoencoderKL, DiTPipeline"
        load = (
            'vae = AutoencoderKL.from_pretrained("PATH_OR_ID")\n'
            f'pipe = DiTPipeline.from_pretrained("{name}", vae=vae)'
        )
    text = _python(
        *imports,
        f"from diffusers import {names}",
        "",
        load,
        *([f"tinyfusion.{call}(pipe)"] if call else []),
        f"images = pipe([0, 1], num_inference_steps=50, guidance_scale={scale}).images",
    )
    if has_vae:
        return text
    return (
        f"{text}\n\nThis folder holds no autoencoder: `vae` is the one that the model was "
        f"trained with, for {net.config()['in_channels']}-channel latents. "
        "Without any, the network alone loads with "
        f'`DiTTransformer2DModel.from_pretrained("{name}", subfolder="transformer")`.'
    )


def _depths(net: Backbone) -> str:
    """Constructor arguments that say how many blocks there are."""
    arguments = net.config()
    given = [f"{key}={arguments[key]}" for key in net.depth_arguments if key in arguments]
    return ", ".join(given or [f"depth={net.depth}"])


def _python(*lines: str) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


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
    shown = {
        key: ", ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in values.items()
        if value is not None
    }
    return "; ".join(f"{key} {value}" for key, value in shown.items())


def _number(value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _public(path: Any) -> str:
    """A source as the user typed it, but of an absolute path only the end: cards are published."""
    text = str(path)
    return "/".join(Path(text).parts[-2:]) if Path(text).is_absolute() else text
