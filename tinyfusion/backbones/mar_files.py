"""Public files of MAR."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from tinyfusion.backbones.branches import removed_argument
from tinyfusion.backbones.public_files import (
    PublicFiles,
    count_modules,
    grid_side,
    inner_widths,
    inside_blocks,
    predicts_variance,
    shape_of,
)
from tinyfusion.errors import InputError

_STACKS = ("encoder_blocks", "decoder_blocks")
_SIZES = {"mar_base": (768, 12), "mar_large": (1024, 16), "mar_huge": (1280, 20)}
"""Width and depth of either stack of the published sizes by name."""


def infer_mar(state: Mapping[str, Tensor], origin: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of a MAR from its state dict, without the number of heads.

    A token's values don't show whether they are channels of one position or of a patch of
    several: one position, as in every published file, unless ``known`` has a ``patch_size``.

    Args:
        state: tensors under public MAR names.
        origin: name of the file, for error messages.
        known: arguments known otherwise.

    Returns:
        Arguments of :class:`~tinyfusion.backbones.mar.MAR` but ``num_heads``.

    Raises:
        InputError: the tensors are not those of a MAR, or of none with that patch size.
    """
    shape = partial(shape_of, state, origin=origin, kind="MAR")
    width, values = shape("z_proj.weight", 2)
    num_classes = shape("class_emb.weight", 2)[0]
    length = shape("encoder_pos_embed_learned", 3)[1]
    num_tokens = shape("diffusion_pos_embed_learned", 3)[1]
    decoder_width, encoder_width = shape("decoder_embed.weight", 2)
    if decoder_width != encoder_width:
        raise InputError(
            f"{origin}: an encoder of width {encoder_width} and a decoder of width "
            f"{decoder_width}; valid: a MAR with one width, as all published ones"
        )
    if length <= num_tokens:
        raise InputError(
            f"{origin}: encoder_pos_embed_learned has {length} positions for {num_tokens} tokens; "
            "valid: more, as class tokens come before them"
        )
    depths = {stack: count_modules(state, stack, origin) for stack in _STACKS}
    encoder_depth, decoder_depth = depths.values()
    inside = inside_blocks(state, depths, width, origin, "MAR")
    patch_size = known.get("patch_size", 1)
    if patch_size < 1 or values % patch_size**2:
        raise InputError(
            f"{origin}: patch_size={patch_size} does not fit tokens of {values} values, which must "
            "be a multiple of its square"
        )
    side = grid_side(num_tokens, "diffusion_pos_embed_learned", origin)
    output = "diffloss.net.final_layer.linear.weight"
    return {
        "input_size": side * patch_size,
        "hidden_size": width,
        "encoder_depth": encoder_depth,
        "decoder_depth": decoder_depth,
        "patch_size": patch_size,
        "in_channels": values // patch_size**2,
        **inner_widths(inside.qkv_rows, inside.mlp_width, width, known, origin),
        "num_classes": num_classes,
        "buffer_size": length - num_tokens,
        "head_depth": count_modules(state, "diffloss.net.res_blocks", origin),
        "head_width": shape("diffloss.net.input_proj.weight", 2)[0],
        "learn_sigma": predicts_variance(state, output, values, 2, origin, "MAR"),
        **removed_argument(inside.removed),
    }


def _from_training_args(args: Mapping[str, Any]) -> dict[str, tuple[str, Any]] | None:
    """See `PublicFiles.from_training_args`."""
    model = args.get("model")
    if not isinstance(model, str) or not model.startswith("mar_"):
        return None
    found: dict[str, tuple[str, Any]] = {}
    if model in _SIZES:
        width, depth = _SIZES[model]
        sizes = {"hidden_size": width, "encoder_depth": depth, "decoder_depth": depth}
        found |= {key: ("model", value) for key, value in sizes.items()}
    for key, word in {
        "patch_size": "patch_size",
        "in_channels": "vae_embed_dim",
        "num_classes": "class_num",
        "buffer_size": "buffer_size",
        "head_depth": "diffloss_d",
        "head_width": "diffloss_w",
    }.items():
        if type(args.get(word)) is int:
            found[key] = (word, args[word])
    if type(args.get("img_size")) is int and type(args.get("vae_stride")) is int:
        found["input_size"] = ("img_size", args["img_size"] // max(args["vae_stride"], 1))
    return found


MAR_FILES = PublicFiles(
    # Other models have decoder_blocks, too.
    marks=("diffloss.net.", "z_proj."),
    infer=infer_mar,
    heads={768: 12, 1024: 16, 1280: 16},
    from_training_args=_from_training_args,
    unseen=("patch_size",),
    citation="""@article{li2024autoregressive,
  title={Autoregressive Image Generation without Vector Quantization},
  author={Li, Tianhong and Tian, Yonglong and Li, He and Deng, Mingyang and He, Kaiming},
  journal={arXiv preprint arXiv:2406.11838},
  year={2024}
}""",
)
