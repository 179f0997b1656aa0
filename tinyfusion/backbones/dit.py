"""DiT, the class-conditional diffusion transformer (arXiv 2212.09748), with public tensor names.

Shape suffixes: B batch, T tokens, D width, C channels, H image height, W image width,
P patch side, F frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyfusion.backbones.branches import (
    Branch,
    BranchedBlock,
    BranchRunner,
    removed_argument,
    run_branch_plain,
)
from tinyfusion.backbones.contract import Backbone, BlockRunner, run_plain
from tinyfusion.backbones.dit_diffusers import DIT_DIFFUSERS
from tinyfusion.backbones.dit_files import DIT_FILES
from tinyfusion.backbones.layers import (
    Attention,
    Mlp,
    TimestepEmbedder,
    check_sizes,
    init_linears,
    null_class,
    sincos_positions,
    uncommon_widths,
)
from tinyfusion.backbones.width_plan import WidthGroup, WidthPlan, block_groups
from tinyfusion.errors import InputError
from tinyfusion.states import States


class LabelEmbedder(nn.Module):
    """Class table with one extra row for the null class; labels are dropped by the caller."""

    def __init__(self, num_classes: int, width: int, has_null: bool) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + int(has_null), width)

    def forward(self, y: Tensor) -> Tensor:
        """Map labels of shape (B,) to embeddings of shape (B, D)."""
        return self.embedding_table(y)


class PatchEmbedder(nn.Module):
    """Image to tokens by a strided convolution."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, T, D), tokens in row-major order."""
        # Laid out anew: all states of the network have the strides of these.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


def _modulated_norm(x_BTD: Tensor, shift_BD: Tensor, scale_BD: Tensor, eps: float) -> Tensor:
    normed_BTD = F.layer_norm(x_BTD, x_BTD.shape[-1:], eps=eps)
    return torch.addcmul(shift_BD[:, None], normed_BTD, 1 + scale_BD[:, None])


class DiTBlock(BranchedBlock):
    """Transformer block with adaLN-Zero conditioning (DiT, section 3.2).

    Each branch has three chunks of the modulation: shift, scale and gate.
    """

    branch_names = ("attn", "mlp")

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        mlp_norm_eps: float = 1e-6,
        head_dim: int | None = None,
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        self.norm_eps = {"attn": 1e-6, "mlp": mlp_norm_eps}
        self.left = list(self.branch_names)
        self.attn = Attention(width, num_heads, head_dim=head_dim)
        self.mlp = Mlp(width, int(width * mlp_ratio) if mlp_width is None else mlp_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self,
        states: States,
        condition: Any,
        run_branch: BranchRunner = run_branch_plain,
    ) -> States:
        """Run the block on states (B, T, D) under a condition (B, D)."""
        modulation = self._modulation(condition)

        def run(name: str, states: States, given: Any) -> States:
            # A runner may give a branch other rows than the block was given.
            own = modulation if given is condition else self._modulation(given)
            return self._run(name, states, own[name])

        for name in self.left:
            if run_branch is run_branch_plain:
                states = self._run(name, states, modulation[name])
            else:
                states = run_branch(name, partial(run, name), states, condition)
        return states

    def branches(self) -> dict[str, Branch]:
        """See `BranchedBlock.branches`."""

        def run(name: str, states: States, condition: Any) -> States:
            return self._run(name, states, self._modulation(condition)[name])

        return {name: partial(run, name) for name in self.left}

    def remove_branch(self, name: str) -> None:
        """See `BranchedBlock.remove_branch`; the rows of its modulation go as well."""
        linear = self.adaLN_modulation[1]
        assert isinstance(linear, nn.Linear)
        chunks = linear.out_features // (3 * len(self.left))
        first = 3 * chunks * self.left.index(name)
        rows = [*range(first), *range(first + 3 * chunks, linear.out_features)]
        at = torch.tensor(rows, device=linear.weight.device)
        for key, old in list(linear.named_parameters()):
            new = nn.Parameter(old.detach().index_select(0, at), old.requires_grad)
            setattr(linear, key, new)
        linear.out_features = len(rows)
        delattr(self, name)
        self.left.remove(name)

    def _modulation(self, condition_BD: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Shift, scale and gate of each branch, each of shape (B, D)."""
        chunks = self.adaLN_modulation(condition_BD).chunk(3 * len(self.left), dim=-1)
        return {name: chunks[3 * n : 3 * n + 3] for n, name in enumerate(self.left)}

    def _run(self, name: str, x_BTD: Any, modulation: tuple[Tensor, ...]) -> Tensor:
        shift_BD, scale_BD, gate_BD = modulation
        branch = self.attn if name == "attn" else self.mlp
        out_BTD = branch(_modulated_norm(x_BTD, shift_BD, scale_BD, self.norm_eps[name]))
        return torch.addcmul(x_BTD, gate_BD[:, None], out_BTD)


class FinalLayer(nn.Module):
    """Modulated norm and the projection from tokens to patches."""

    def __init__(self, width: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
        """Map states (B, T, D) to patch values (B, T, P*P*C)."""
        shift_BD, scale_BD = self.adaLN_modulation(condition_BD).chunk(2, dim=-1)
        return self.linear(_modulated_norm(x_BTD, shift_BD, scale_BD, 1e-6))


class DiT(Backbone):
    """Diffusion transformer whose state dict has the names of the public checkpoints.

    Args:
        input_size: side of the square input, in latent cells or pixels.
        patch_size: side of a patch; must divide ``input_size``.
        in_channels: channels of the input.
        hidden_size: width of the residual stream; a multiple of 4, and of ``num_heads`` without
            ``head_dim``.
        depth: number of blocks.
        num_heads: attention heads per block.
        mlp_ratio: hidden width of the MLP over ``hidden_size``.
        num_classes: number of classes without the null class.
        class_dropout_prob: probability with which *training* replaces a label by the null
            class. The module itself never drops labels, so that teacher and student can be
            given the same ones; 0 means that there is no null row in the table.
        learn_sigma: whether the output carries as many variance channels again.
        frequency_divisor: divisor k / divisor in the exponent of the time frequencies, 128 as
            published (127 in stock diffusers).
        mlp_norm_eps: epsilon of the norm before the MLP, 1e-6 as published (1e-5 in diffusers).
        gate_bias_init: start value of the biases behind the two adaLN gates. 0 as published;
            small models use their depth only if it is larger.
        head_dim: channels of an attention head; ``None`` divides ``hidden_size`` among the heads.
            Models pruned in width need not fill it.
        mlp_width: hidden width of the MLP; ``None`` takes ``mlp_ratio``'s.
        removed_branches: branches that blocks don't have, such as ``"blocks.3.attn"``.

    Raises:
        InputError: sizes that do not fit together.
    """

    public_files = DIT_FILES
    family = "dit"
    diffusers = DIT_DIFFUSERS
    fixed_tables = ("pos_embed",)

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = True,
        frequency_divisor: float = 128.0,
        mlp_norm_eps: float = 1e-6,
        gate_bias_init: float = 0.0,
        head_dim: int | None = None,
        mlp_width: int | None = None,
        removed_branches: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if depth < 1:
            raise InputError(f"depth must be at least 1, got {depth}")
        check_sizes(input_size, patch_size, hidden_size, num_heads, head_dim, mlp_width)
        self.input_size = input_size
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        self.mlp_ratio = mlp_ratio
        self.mlp_width = int(hidden_size * mlp_ratio) if mlp_width is None else mlp_width
        self.num_classes = num_classes
        self.class_dropout_prob = class_dropout_prob
        self.learn_sigma = learn_sigma
        self.frequency_divisor = frequency_divisor
        self.mlp_norm_eps = mlp_norm_eps

        self.x_embedder = PatchEmbedder(in_channels, hidden_size, patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size, frequency_divisor)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob > 0)
        self.pos_embed = nn.Parameter(
            sincos_positions(hidden_size, input_size // patch_size), requires_grad=False
        )
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, mlp_ratio, mlp_norm_eps, head_dim, mlp_width)
            for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self._initialise(gate_bias_init)
        self.remove_branches(removed_branches)

    def _initialise(self, gate_bias_init: float) -> None:
        # DiT, section 3.2 and its appendix: Xavier everywhere, then zeros where adaLN-Zero
        # lets each block start as the identity.
        init_linears(self)
        patch_weight = self.x_embedder.proj.weight
        nn.init.xavier_uniform_(patch_weight.data.view(patch_weight.shape[0], -1))
        nn.init.zeros_(self.x_embedder.get_parameter("proj.bias"))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        self.t_embedder.init_weights()
        for owner in (*self.blocks, self.final_layer):
            nn.init.zeros_(owner.get_parameter("adaLN_modulation.1.weight"))
        nn.init.zeros_(self.final_layer.linear.weight)
        width = self.hidden_size
        for block in self.blocks:
            for chunk in (2, 5):
                bias = block.get_parameter("adaLN_modulation.1.bias").data
                bias[chunk * width : (chunk + 1) * width] = gate_bias_init

    def config(self) -> dict[str, Any]:
        """Constructor arguments of this module as it now is."""
        names = (
            "input_size patch_size in_channels hidden_size depth num_heads mlp_ratio num_classes "
            "class_dropout_prob learn_sigma frequency_divisor mlp_norm_eps"
        )
        found = {name: getattr(self, name) for name in names.split()} | uncommon_widths(self)
        return found | removed_argument(self.removed_branches)

    def width_plan(self) -> WidthPlan:
        """See `Backbone`: residual stream, condition, time MLP, and every block's inner widths."""
        groups = [
            WidthGroup("residual", "hidden_size", "x_embedder.proj"),
            WidthGroup("condition", "hidden_size", "t_embedder.mlp.2"),
            WidthGroup("time", "hidden_size", "t_embedder.mlp.0"),
        ]
        for index, block in enumerate(self.blocks):
            assert isinstance(block, DiTBlock)
            groups += block_groups(f"blocks.{index}", self.head_dim, block.left)
        return WidthPlan(tuple(groups), {"head_dim": self.head_dim}, {"pos_embed": 2})

    @property
    def null_label(self) -> int:
        """Index of the null class.

        Raises:
            InputError: the model was built without label dropout and has no such row.
        """
        rows = self.y_embedder.embedding_table.num_embeddings
        return null_class(self.num_classes, rows > self.num_classes)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, run_block: BlockRunner = run_plain
    ) -> Tensor:
        """Predict noise (and variance values) from a noisy input.

        Args:
            x: noisy input, shape (B, C, H, W).
            t: times, shape (B,); integers 0..999 for DiT.
            y: labels, shape (B,), integers 0..num_classes, the last being the null class.
            run_block: how to run each block.

        Returns:
            Prediction of shape (B, 2C, H, W) with learned variance, (B, C, H, W) without.
        """
        condition_BD = self.t_embedder(t) + self.y_embedder(y)
        states_BTD = self.x_embedder(x) + self.pos_embed
        for index, block in enumerate(self.blocks):
            states_BTD = run_block(index, block, states_BTD, condition_BD)
        return self._unpatchify(self.final_layer(states_BTD, condition_BD))

    def _unpatchify(self, patches: Tensor) -> Tensor:
        P, C = self.patch_size, self.out_channels
        side = self.input_size // P
        grid = patches.view(-1, side, side, P, P, C)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, C, side * P, side * P)
