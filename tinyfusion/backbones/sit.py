"""SiT, the scalable interpolant transformer (arXiv 2401.08740): the network of DiT in real time.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor

from tinyfusion.backbones.contract import BlockRunner, run_plain
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.dit_files import SIT_FILES


class SiT(DiT):
    """DiT's tensors under DiT's names, for real times and a prediction without variance.

    Time runs from noise (0) to data (1) and enters the time features unscaled. A model with
    ``learn_sigma``, as published, still has the rows of the last layer that DiT uses for the
    variance; their output is discarded.

    Arguments, attributes and errors are those of :class:`~tinyfusion.backbones.dit.DiT`.
    """

    process_kind = "interpolant"
    family = "sit"
    public_files = SIT_FILES

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, run_block: BlockRunner = run_plain
    ) -> Tensor:
        """Predict what the process asks for (velocity as published) from a noisy input.

        Args:
            x: noisy input, shape (B, C, H, W).
            t: times in 0..1, shape (B,).
            y: labels, shape (B,), integers 0..num_classes, the last being the null class.
            run_block: how to run each block.

        Returns:
            Prediction of shape (B, C, H, W).
        """
        return super().forward(x, t, y, run_block)[:, : self.in_channels]
