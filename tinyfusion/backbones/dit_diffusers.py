"""DiT weights under the names of diffusers' ``DiTTransformer2DModel``, both ways.

The two layouts hold the same numbers, but diffusers splits q, k and v, repeats the timestep MLP
and the label table in every block (its output layer uses those of block 0), and does not store
the position table. It also computes another function of them: see :data:`STOCK`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from tinyfusion.backbones.layers import sincos_positions
from tinyfusion.backbones.public_files import DIFFUSERS_BLOCKS, DiffusersFiles
from tinyfusion.errors import InputError

# Files from before diffusers 0.29, the published DiT among them, name the general class, which
# the library itself maps to the DiT one.
_CLASS_NAMES = ("DiTTransformer2DModel", "Transformer2DModel")

STOCK = {"frequency_divisor": 127.0, "mlp_norm_eps": 1e-5}
"""How diffusers by itself computes a DiT; published files expect 128 and 1e-6.

The divisor is fixed in its code. The epsilon is ``norm_eps`` of its config, whose default this is.
"""

PRIVATE_KEY = "_tinyfusion"
"""Where the config of an export says which convention its weights expect.

diffusers keeps keys with an underscore through loading and saving and does not warn of them.
"""

_MLP_RATIO = 4.0  # fixed in diffusers' code

# Values that a DiT has; another one would be another function. Left out means the first.
_VALID: dict[str, tuple[Any, ...]] = {
    "norm_type": ("ada_norm_zero",),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
    "dropout": (0.0,),
    "cross_attention_dim": (None,),
    "only_cross_attention": (False,),
    "double_self_attention": (False,),
    "num_vector_embeds": (None,),
}

_TOP = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_COPIED = {
    "t_embedder.mlp.0.weight": "norm1.emb.timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "norm1.emb.timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "norm1.emb.timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "norm1.emb.timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "norm1.emb.class_embedder.embedding_table.weight",
}
_PARTS = ("weight", "bias")
_TABLE = "pos_embed.pos_embed"  # stored by some versions only


def from_diffusers(
    state: Mapping[str, Tensor], config: Mapping[str, Any], origin: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Public names and constructor arguments of a diffusers DiT.

    Args:
        state: tensors of a ``DiTTransformer2DModel``, each of which is asked for once.
        config: its ``config.json``; keys left out have diffusers' defaults.
        origin: name of the file or folder, for error messages.

    Returns:
        The tensors under public names, with the position table, and the arguments of
        :class:`~tinyfusion.backbones.dit.DiT`, which compute what diffusers computes.

    Raises:
        InputError: the config or the tensors are not those of a DiT, or the copies of the
            timestep MLP and the label table differ between blocks.
    """
    arguments = _arguments(config, origin)
    depth = arguments["depth"]
    left = dict.fromkeys(state)

    def take(name: str) -> Tensor:
        if name not in left:
            raise InputError(f"{origin}: has no tensor {name!r}, which its config asks for")
        del left[name]
        return state[name]

    public: dict[str, Tensor] = {}
    for ours, theirs in _TOP.items():
        for part in _PARTS:
            public[f"{ours}.{part}"] = take(f"{theirs}.{part}")
    for index in range(depth):
        block = f"{DIFFUSERS_BLOCKS}.{index}"
        for part in _PARTS:
            qkv = [take(f"{block}.{name}.{part}") for name in _QKV]
            public[f"blocks.{index}.attn.qkv.{part}"] = torch.cat(qkv)
            for ours, theirs in _BLOCK.items():
                public[f"blocks.{index}.{ours}.{part}"] = take(f"{block}.{theirs}.{part}")
        for ours, theirs in _COPIED.items():
            copied = take(f"{block}.{theirs}")
            if not torch.equal(public.setdefault(ours, copied), copied):
                raise InputError(
                    f"{origin}: tensor {block}.{theirs} differs from that of block 0: a DiT has "
                    "one timestep MLP and one label table for all blocks (were they fine-tuned "
                    "apart in diffusers?)"
                )
    computed = sincos_positions(
        arguments["hidden_size"], arguments["input_size"] // arguments["patch_size"]
    )
    public["pos_embed"] = take(_TABLE) if _TABLE in left else computed
    if left:
        raise InputError(
            f"{origin}: holds tensors that its config does not ask for: {', '.join(list(left)[:3])}"
        )
    return public, arguments


def _arguments(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    name = config.get("_class_name", _CLASS_NAMES[0])
    if name not in _CLASS_NAMES:
        raise InputError(
            f"{origin}: config key '_class_name' is {name!r}; valid: {', '.join(_CLASS_NAMES)}"
        )
    for key, valid in _VALID.items():
        found = config.get(key, valid[0])
        if found not in valid:
            raise InputError(f"{origin}: config key {key!r} is {found!r}; valid: {valid[0]!r}")
    sizes = {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4}
    sizes |= {"num_layers": 28, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000}
    for key, default in sizes.items():
        sizes[key] = found = config.get(key, default)
        if type(found) is not int or found < 1:
            raise InputError(
                f"{origin}: config key {key!r} is {found!r}; valid: a positive integer"
            )
    channels, out_channels = sizes["in_channels"], config.get("out_channels")
    if out_channels not in (None, channels, 2 * channels):
        raise InputError(
            f"{origin}: config key 'out_channels' is {out_channels!r}; valid with in_channels "
            f"{channels}: {channels}, or {2 * channels} with learned variance"
        )
    eps = config.get("norm_eps", STOCK["mlp_norm_eps"])
    if not _is_positive(eps):
        raise InputError(f"{origin}: config key 'norm_eps' is {eps!r}; valid: a positive number")
    record = config.get(PRIVATE_KEY)
    stated = record.get("convention") if isinstance(record, Mapping) else None
    convention = stated if isinstance(stated, Mapping) else STOCK
    divisor = convention.get("frequency_divisor")
    if not _is_positive(divisor):
        raise InputError(
            f"{origin}: config key {PRIVATE_KEY!r} has frequency_divisor={divisor!r}; valid: a "
            "positive number"
        )
    return {
        "input_size": sizes["sample_size"],
        "patch_size": sizes["patch_size"],
        "in_channels": channels,
        "hidden_size": sizes["num_attention_heads"] * sizes["attention_head_dim"],
        "depth": sizes["num_layers"],
        "num_heads": sizes["num_attention_heads"],
        "mlp_ratio": _MLP_RATIO,
        "num_classes": sizes["num_embeds_ada_norm"],
        "class_dropout_prob": 0.1,  # the class always has a null row
        "learn_sigma": out_channels == 2 * channels,
        "frequency_divisor": float(divisor),
        "mlp_norm_eps": float(eps),
    }


def _is_positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def to_diffusers(net: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config of the ``DiTTransformer2DModel`` that holds the weights of ``net``.

    The blocks of a pruned model are numbered from 0 without gaps. ``norm_eps`` is that of
    ``net``; the frequency divisor has no place in the config, so that diffusers computes with
    127 whatever ``net`` does.

    Args:
        net: a DiT.

    Returns:
        State dict, no two tensors of which share memory, and the constructor arguments of the
        diffusers class.

    Raises:
        InputError: see `check_holdable`.
    """
    check_holdable(net)
    source = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    state: dict[str, Tensor] = {}
    for ours, theirs in _TOP.items():
        for part in _PARTS:
            state[f"{theirs}.{part}"] = source[f"{ours}.{part}"].clone()
    for index in range(net.depth):
        block = f"{DIFFUSERS_BLOCKS}.{index}"
        for part in _PARTS:
            qkv = source[f"blocks.{index}.attn.qkv.{part}"].chunk(3)
            for name, rows in zip(_QKV, qkv, strict=True):
                state[f"{block}.{name}.{part}"] = rows.clone()
            for ours, theirs in _BLOCK.items():
                tensor = source[f"blocks.{index}.{ours}.{part}"]
                state[f"{block}.{theirs}.{part}"] = tensor.clone()
        for ours, theirs in _COPIED.items():
            state[f"{block}.{theirs}"] = source[ours].clone()
    config = {
        "num_attention_heads": net.num_heads,
        "attention_head_dim": net.hidden_size // net.num_heads,
        "in_channels": net.in_channels,
        "out_channels": net.out_channels,
        "num_layers": net.depth,
        "sample_size": net.input_size,
        "patch_size": net.patch_size,
        "num_embeds_ada_norm": net.num_classes,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": net.mlp_norm_eps,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "dropout": 0.0,
    }
    return state, config


def check_holdable(net: Any) -> None:
    """Refuse a DiT that the diffusers class can't hold.

    Args:
        net: a DiT.

    Raises:
        InputError: blocks that lack a branch, heads that don't fill the width, an MLP of another
            width than diffusers', no null class, or a position table of its own.
    """
    if net.removed_branches:
        first = ", ".join(net.removed_branches[:3])
        raise InputError(
            f"{len(net.removed_branches)} branches are removed ({first}, ...), but a block of "
            "diffusers has attention and MLP both; valid: --to ours or --to public"
        )
    if net.num_heads * net.head_dim != net.hidden_size:
        raise InputError(
            f"{net.num_heads} heads of {net.head_dim} channels in a model of width "
            f"{net.hidden_size} can't be exported to diffusers, whose heads fill the width; "
            "valid: --to ours or --to public"
        )
    if net.mlp_ratio != _MLP_RATIO:
        raise InputError(
            f"mlp_ratio={net.mlp_ratio} can't be exported to diffusers; valid there: {_MLP_RATIO}"
        )
    if net.mlp_width != int(_MLP_RATIO * net.hidden_size):
        raise InputError(
            f"mlp_width={net.mlp_width} can't be exported to diffusers; valid there: "
            f"{_MLP_RATIO} times the width of {net.hidden_size}"
        )
    table = net.y_embedder.embedding_table
    if table.num_embeddings != net.num_classes + 1:
        raise InputError(
            "a model without null class (class_dropout_prob=0) can't be exported to diffusers, "
            "whose label table always has a row for it; valid: --to ours or --to public"
        )
    expected = sincos_positions(net.hidden_size, net.input_size // net.patch_size)
    if not torch.allclose(net.pos_embed.detach().cpu().float(), expected, rtol=0, atol=1e-5):
        raise InputError(
            "a model with its own position table (pos_embed) can't be exported to diffusers, "
            "which computes the sine-cosine table; valid: --to ours or --to public"
        )


DIT_DIFFUSERS = DiffusersFiles(
    class_names=_CLASS_NAMES, read=from_diffusers, write=to_diffusers, check=check_holdable
)
