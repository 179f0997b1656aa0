"""What stock diffusers' way of computing DiT changes: the table of docs/interchange.md."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.presets import build
from tinyfusion.checkpoints import load, save_diffusers, set_convention
from tinyfusion.checkpoints.convention import PUBLISHED, STOCK
from tinyfusion.conditioning import ClassLabels
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.generate import balanced_labels, generate
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.surgery import prune

EPSILON = PUBLISHED | {"mlp_norm_eps": STOCK["mlp_norm_eps"]}


def recomputed(net: Backbone, convention: dict[str, float]) -> Backbone:
    """The same weights, computed by another convention."""
    other = build({"backbone": "dit", **net.config(), **convention})
    other.load_state_dict(net.state_dict())
    return other.eval()


def print_row(name: str, stock: Tensor, epsilon: Tensor) -> None:
    """One row: the largest difference and its mean."""
    cells = [f"{d.abs().max():.2g} ({d.abs().mean():.2g})" for d in (stock, epsilon)]
    print(f"| {name} | {cells[0]} | {cells[1]} |")


@torch.no_grad()
def digits_teacher() -> None:
    net = load("digits")
    nets = [recomputed(net, convention) for convention in (STOCK, EPSILON)]
    x = torch.randn(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = x, torch.arange(1000), balanced_labels(1000, 10)
    exact = net(*inputs)[:, :1]
    print_row("noise prediction, all 1,000 times", *(n(*inputs)[:, :1] - exact for n in nets))
    process, sampler = GaussianDiffusion(clip=True), DDIMSampler(50)
    labels = balanced_labels(100, 10)
    exact = generate(net, process, sampler, labels, seed=0)
    print_row(
        "100 samples, DDIM 50 steps, pixels in [-1, 1]",
        *(generate(n, process, sampler, labels, seed=0) - exact for n in nets),
    )


@torch.no_grad()
def pipeline_images(kept: list[int] | None, folder: Path) -> None:
    from diffusers import AutoencoderKL, DiTPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    vae.save_pretrained(folder / "vae")  # type: ignore[attr-defined]  # of a mixin without types
    net: Backbone = DiT(input_size=8, hidden_size=32, depth=5, num_heads=4, num_classes=1000)
    draws = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=draws)
    net = (net if kept is None else prune(net, kept)).eval()
    pipe = DiTPipeline.from_pretrained(
        save_diffusers(net, folder / "export", vae=folder / "vae", overwrite=True)
    )
    pipe.set_progress_bar_config(disable=True)
    labels = [0, 417, 999]
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    latents = DDIMSampler("ddim10")(
        net, GaussianDiffusion(), lambda: noise, ClassLabels(torch.tensor(labels)), Guidance(4.0)
    )
    exact = Autoencoder(str(folder / "vae")).decode(latents) / 2 + 0.5

    def difference(convention: dict[str, float]) -> Tensor:
        set_convention(pipe, **convention)
        images = pipe(
            labels,
            guidance_scale=4.0,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(7),
            output_type="pt",
        ).images
        return images - exact

    name = "full" if kept is None else f"pruned to blocks {kept}"
    print_row(
        f"pipeline images in [0, 1], tiny model, {name}", difference(STOCK), difference(EPSILON)
    )
    print(f"(with the published convention: {difference(PUBLISHED).abs().max():.2g})")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| largest difference (mean) | as diffusers computes (127, 1e-5) | (128, 1e-5) |")
    print("|---|---:|---:|")
    digits_teacher()
    with tempfile.TemporaryDirectory() as folder:
        for kept in (None, [0, 2, 4]):
            pipeline_images(kept, Path(folder))


if __name__ == "__main__":
    main()
