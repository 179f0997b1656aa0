"""MAR, the masked autoregressive model with a diffusion head (arXiv 2406.11838).

An encoder sees the tokens that are known, a decoder all positions; a small network then denoises
every token under the decoder's output for it. Tensor names are those of the public checkpoints.

Shape suffixes: B batch, T tokens, V visible tokens, S sequence (buffer and tokens), D width,
M hidden tokens, C channels, H height, W width of the image, R repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyfusion.backbones.branches import removed_argument
from tinyfusion.backbones.contract import Backbone, BlockRunner, dtype_of, run_plain
from tinyfusion.backbones.diffusion_head import DiffusionHead
from tinyfusion.backbones.kernels import Linear
from tinyfusion.backbones.layers import (
    NORM_EPS,
    PreNormBlock,
    check_sizes,
    init_linears,
    null_class,
    uncommon_widths,
)
from tinyfusion.backbones.mar_files import MAR_FILES
from tinyfusion.backbones.tokens import patchify, take, visible_first
from tinyfusion.backbones.width_plan import WidthGroup, WidthPlan, block_groups
from tinyfusion.errors import InputError
from tinyfusion.states import States

_TABLES = {
    "class_emb.weight": 1,
    "fake_latent": 1,
    "mask_token": 2,
    "encoder_pos_embed_learned": 2,
    "decoder_pos_embed_learned": 2,
    "diffusion_pos_embed_learned": 2,
}
"""Parameters that the forward uses by themselves, with the axis that holds their channels."""


class MAR(Backbone):
    """Masked autoregressive model whose state dict has the names of the public checkpoints.

    Its blocks are those of the encoder followed by those of the decoder, run without a condition:
    the class enters as ``buffer_size`` tokens in front of the image's. A stack may lose all of its
    blocks; its norm and embedding stay.

    Args:
        input_size: side of the square input, in latent cells or pixels.
        hidden_size: width of both stacks; a multiple of ``num_heads`` without ``head_dim``.
        encoder_depth: number of encoder blocks.
        decoder_depth: number of decoder blocks.
        num_heads: attention heads per block.
        patch_size: side of the square that makes a token; must divide ``input_size``.
        in_channels: channels of the input.
        mlp_ratio: hidden width of the blocks' MLP over ``hidden_size``.
        num_classes: number of classes without the null class.
        class_dropout_prob: probability with which *training* replaces a label by the null class;
            0 means that the null class was never trained.
        buffer_size: number of class tokens.
        head_depth: residual blocks of the diffusion head.
        head_width: width of the diffusion head.
        learn_sigma: whether the head predicts as many variance values again.
        dropout: probability with which training drops attention weights and channels of the
            blocks; published models were trained with 0.1.
        head_dim: channels of an attention head; ``None`` divides ``hidden_size`` among the heads.
        mlp_width: hidden width of the blocks' MLP; ``None`` takes ``mlp_ratio``'s.
        removed_branches: branches that blocks don't have, such as ``"encoder_blocks.3.attn"``.

    Attributes:
        num_tokens: tokens of an image.
        token_channels: values of a token, ``in_channels * patch_size**2``.

    Raises:
        InputError: sizes that do not fit together.
    """

    process_kind = "masked"
    family = "mar"
    fixed_shapes = False  # the tokens that it looks at are more in each iteration
    depth_arguments = ("encoder_depth", "decoder_depth")
    stack_names = ("encoder_blocks", "decoder_blocks")
    public_files = MAR_FILES

    def __init__(
        self,
        input_size: int = 16,
        hidden_size: int = 1024,
        encoder_depth: int = 16,
        decoder_depth: int = 16,
        num_heads: int = 16,
        patch_size: int = 1,
        in_channels: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        buffer_size: int = 64,
        head_depth: int = 8,
        head_width: int = 1280,
        learn_sigma: bool = True,
        dropout: float = 0.0,
        head_dim: int | None = None,
        mlp_width: int | None = None,
        removed_branches: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if encoder_depth + decoder_depth < 1:
            raise InputError("encoder_depth and decoder_depth are both 0; valid: a block in one")
        check_sizes(input_size, patch_size, hidden_size, num_heads, head_dim, mlp_width)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {dropout}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        self.mlp_ratio = mlp_ratio
        self.mlp_width = int(hidden_size * mlp_ratio) if mlp_width is None else mlp_width
        self.num_classes = num_classes
        self.class_dropout_prob = class_dropout_prob
        self.buffer_size = buffer_size
        self.head_depth = head_depth
        self.head_width = head_width
        self.learn_sigma = learn_sigma
        self.dropout = dropout
        self.num_tokens = (input_size // patch_size) ** 2
        self.token_channels = in_channels * patch_size**2

        width, length = hidden_size, buffer_size + self.num_tokens
        self.class_emb = nn.Embedding(num_classes, width)
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        self.z_proj = Linear(self.token_channels, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, length, width))
        self.encoder_blocks = self._stack(encoder_depth)
        self.encoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_embed = Linear(width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, length, width))
        self.decoder_blocks = self._stack(decoder_depth)
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, self.num_tokens, width))
        init_linears(self)
        for name in _TABLES:
            nn.init.normal_(self.get_parameter(name), std=0.02)
        # Public files keep the head inside the module of its loss, hence the extra name.
        out_channels = self.token_channels * (2 if learn_sigma else 1)
        head = DiffusionHead(self.token_channels, out_channels, width, head_width, head_depth)
        self.diffloss = nn.ModuleDict({"net": head})
        self.remove_branches(removed_branches)

    def _stack(self, depth: int) -> nn.ModuleList:
        return nn.ModuleList(
            PreNormBlock(
                self.hidden_size, self.num_heads, self.head_dim, self.mlp_width, self.dropout
            )
            for _ in range(depth)
        )

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]  # only the stacks are assigned
        """Encoder blocks, then decoder blocks: a new list of the same modules at each call."""
        return nn.ModuleList([*self.encoder_blocks, *self.decoder_blocks])

    @property
    def borders(self) -> tuple[int, ...]:
        """Index of the first decoder block; 0 or the depth where a stack is empty."""
        return (len(self.encoder_blocks),)

    def keep_blocks(self, kept: Sequence[int]) -> None:
        """Drop every block but ``kept`` from the stack that holds it."""
        first, blocks = len(self.encoder_blocks), self.blocks
        self.encoder_blocks = nn.ModuleList([blocks[i] for i in kept if i < first])
        self.decoder_blocks = nn.ModuleList([blocks[i] for i in kept if i >= first])

    def config(self) -> dict[str, Any]:
        """Constructor arguments of this module as it now is."""
        names = (
            "input_size hidden_size num_heads patch_size in_channels mlp_ratio num_classes "
            "class_dropout_prob buffer_size head_depth head_width learn_sigma dropout"
        )
        return {
            "encoder_depth": len(self.encoder_blocks),
            "decoder_depth": len(self.decoder_blocks),
            **{name: getattr(self, name) for name in names.split()},
            **uncommon_widths(self),
            **removed_argument(self.removed_branches),
        }

    def width_plan(self) -> WidthPlan:
        """See `Backbone`: both stacks' streams and inner widths; the head's own width stays."""
        groups = [
            WidthGroup("encoder", "hidden_size", "z_proj"),
            WidthGroup("decoder", "hidden_size", "decoder_embed"),
        ]
        for name in self.stack_names:
            for index, block in enumerate(getattr(self, name)):
                groups += block_groups(f"{name}.{index}", self.head_dim, block.left)
        return WidthPlan(tuple(groups), {"head_dim": self.head_dim}, _TABLES)

    @property
    def null_label(self) -> int:
        """Label that stands for the null class.

        Raises:
            InputError: the model was made without label dropout, so that it never saw the class.
        """
        return null_class(self.num_classes, self.class_dropout_prob > 0)

    def example_inputs(
        self, count: int = 1, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """Arguments of a forward that hides half of the tokens, with one noisy version each."""
        B, T, C = count, self.num_tokens, self.in_channels
        zeros = partial(torch.zeros, device=device)
        x = zeros(B, C, self.input_size, self.input_size, dtype=dtype_of(self))
        hidden = torch.arange(T // 2, T, device=device).expand(B, -1)
        noisy = zeros(B, 1, T, self.token_channels, dtype=dtype_of(self))
        t = zeros(B, 1, T, dtype=torch.long)
        return x, hidden, noisy, t, *self.example_conditioning(count, device).arguments()

    def conditions(
        self, x: Tensor, hidden: Tensor, y: Tensor, run_block: BlockRunner = run_plain
    ) -> Tensor:
        """Compute the head's condition for every token from the tokens that are visible.

        Args:
            x: images, shape (B, C, H, W); values of hidden tokens are not looked at.
            hidden: numbers of the hidden tokens in any order, shape (B, M).
            y: labels, shape (B,), integers 0..num_classes, the last being the null class.
            run_block: how to run each block. States are (B, buffer + V, D) in the encoder and
                (B, buffer + T, D) in the decoder.

        Returns:
            Shape (B, T, D).
        """
        B, T = len(x), self.num_tokens
        order_BT = visible_first(hidden, T)
        visible_BV = order_BT[:, : T - hidden.shape[1]]

        # One table with the null class last, so that labels index it as they are.
        table = torch.cat([self.class_emb.weight, self.fake_latent])
        buffer_BSD = F.embedding(y, table)[:, None].expand(-1, self.buffer_size, -1)
        tokens_BTD = self.z_proj(patchify(x, self.patch_size))
        known_BSD = torch.cat([buffer_BSD, tokens_BTD], dim=1) + self.encoder_pos_embed_learned
        buffer_BSD, tokens_BTD = self._split(self.z_proj_ln(known_BSD))
        states_BSD: States = torch.cat([buffer_BSD, take(tokens_BTD, visible_BV)], dim=1)
        for index, block in enumerate(self.encoder_blocks):
            states_BSD = run_block(index, block, states_BSD, None)

        buffer_BSD, seen_BVD = self._split(self.decoder_embed(self.encoder_norm(states_BSD)))
        hidden_BTD = self.mask_token.expand(B, T - visible_BV.shape[1], -1)
        tokens_BTD = take(torch.cat([seen_BVD, hidden_BTD], dim=1), order_BT.argsort(dim=1))
        states_BSD = torch.cat([buffer_BSD, tokens_BTD], dim=1) + self.decoder_pos_embed_learned
        for index, block in enumerate(self.decoder_blocks, start=len(self.encoder_blocks)):
            states_BSD = run_block(index, block, states_BSD, None)
        return self._split(self.decoder_norm(states_BSD))[1] + self.diffusion_pos_embed_learned

    def _split(self, states_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Buffer and image tokens of a sequence."""
        return states_BSD[:, : self.buffer_size], states_BSD[:, self.buffer_size :]

    def head(self, noisy: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        """Predict the noise in tokens; each is looked at on its own.

        Args:
            noisy: noisy tokens, shape (..., C*P*P).
            t: integer times, shape (...).
            conditions: outputs of :meth:`conditions`, shape (..., D) or with axes of length 1.

        Returns:
            Noise and, with ``learn_sigma``, as many variance values, shape (..., 2*C*P*P).
        """
        return self.diffloss["net"](noisy, t, conditions)

    def forward(
        self,
        x: Tensor,
        hidden: Tensor,
        noisy: Tensor,
        t: Tensor,
        y: Tensor,
        run_block: BlockRunner = run_plain,
    ) -> Tensor:
        """Predict the noise in R noisy versions of every token.

        Args:
            x: images whose visible tokens are known, shape (B, C, H, W).
            hidden: numbers of the hidden tokens in any order, shape (B, M).
            noisy: noisy tokens, shape (B, R, T, C*P*P).
            t: times of the noise, integers 0..999, shape (B, R, T).
            y: labels, shape (B,), integers 0..num_classes, the last being the null class.
            run_block: how to run each block.

        Returns:
            Noise and variance values, shape (B, R, T, 2*C*P*P).
        """
        return self.head(noisy, t, self.conditions(x, hidden, y, run_block)[:, None])
