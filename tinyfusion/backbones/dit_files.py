"""Public files of DiT and SiT, whose tensors are the same."""

from __future__ import annotations

import re
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

_LATENT_FACTOR = 8
"""Pixels per latent cell of the autoencoder that DiT and SiT were published with."""
_SIZES = {"S": (384, 12), "B": (768, 12), "L": (1024, 24), "XL": (1152, 28)}
"""Width and depth of the published sizes by letter."""


def infer_dit(
    state: Mapping[str, Tensor], origin: str, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Constructor arguments of a DiT from its state dict, without the number of heads.

    The label table does not show whether it has a row for the null class; its last row is taken
    for one, as in every published file.

    Args:
        state: tensors under public DiT names, which are those of SiT too.
        origin: name of the file, for error messages.
        known: arguments known otherwise; needed for a model that was pruned in width.

    Returns:
        Arguments of :class:`~tinyfusion.backbones.dit.DiT` but ``num_heads``.

    Raises:
        InputError: the tensors are not those of a DiT.
    """
    shape = partial(shape_of, state, origin=origin, kind="DiT")
    width, channels, patch_size, _ = shape("x_embedder.proj.weight", 4)
    side = grid_side(shape("pos_embed", 3)[1], "pos_embed", origin)
    depth = count_modules(state, "blocks", origin)
    inside = inside_blocks(state, {"blocks": depth}, width, origin, "DiT")
    num_rows = shape("y_embedder.embedding_table.weight", 2)[0]
    return {
        "input_size": side * patch_size,
        "patch_size": patch_size,
        "in_channels": channels,
        "hidden_size": width,
        "depth": depth,
        **inner_widths(inside.qkv_rows, inside.mlp_width, width, known or {}, origin),
        "num_classes": num_rows - 1,
        "class_dropout_prob": 0.1,
        "learn_sigma": predicts_variance(
            state, "final_layer.linear.weight", patch_size**2 * channels, 2, origin, "DiT"
        ),
        **removed_argument(inside.removed),
    }


def _from_training_args(args: Mapping[str, Any], name: str) -> dict[str, tuple[str, Any]] | None:
    """See `PublicFiles.from_training_args`; ``name`` is how the script calls its models."""
    model = args.get("model")
    if not isinstance(model, str) or not model.startswith(f"{name}-"):
        return None
    found: dict[str, tuple[str, Any]] = {}
    # Names such as DiT-XL/2; DiT-D14/2 is DiT-XL/2 cut to 14 blocks.
    match = re.fullmatch(rf"{name}-(?:(S|B|L|XL)|D(\d+))/(\d+)", model)
    if match:
        width, depth = _SIZES[match[1]] if match[1] else (_SIZES["XL"][0], int(match[2]))
        sizes = {"hidden_size": width, "depth": depth, "patch_size": int(match[3])}
        found |= {key: ("model", value) for key, value in sizes.items()}
    if type(args.get("image_size")) is int:
        found["input_size"] = ("image_size", args["image_size"] // _LATENT_FACTOR)
    if type(args.get("num_classes")) is int:
        found["num_classes"] = ("num_classes", args["num_classes"])
    return found


_MARKS = ("x_embedder.",)
PUBLISHED_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published widths (DiT-S, B, L, XL)."""

DIT_FILES = PublicFiles(
    marks=_MARKS,
    infer=infer_dit,
    heads=PUBLISHED_HEADS,
    from_training_args=partial(_from_training_args, name="DiT"),
    citation="""@article{peebles2022scalable,
  title={Scalable Diffusion Models with Transformers},
  author={Peebles, William and Xie, Saining},
  journal={arXiv preprint arXiv:2212.09748},
  year={2022}
}""",
)
SIT_FILES = PublicFiles(
    marks=_MARKS,
    infer=infer_dit,
    heads=PUBLISHED_HEADS,
    from_training_args=partial(_from_training_args, name="SiT"),
    citation="""@article{ma2024sit,
  title={SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant
         Transformers},
  author={Ma, Nanye and Goldstein, Mark and Albergo, Michael S and Boffi, Nicholas M and
          Vanden-Eijnden, Eric and Xie, Saining},
  journal={arXiv preprint arXiv:2401.08740},
  year={2024}
}""",
)
