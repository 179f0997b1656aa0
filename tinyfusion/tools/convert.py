"""``tinyfusion convert SRC DST --to ours|public|diffusers``: a checkpoint in another layout."""

from __future__ import annotations

from collections.abc import Sequence

from tinyfusion.errors import InputError
from tinyfusion.tools.arguments import Parser

LAYOUTS = {
    "ours": "a folder with model.safetensors and config.json",
    "public": "a bare state dict with the names of the public code, DST.pt or DST.safetensors",
    "diffusers": "a folder that diffusers.DiTPipeline loads",
}
_ONLY_DIFFUSERS = {"vae": None, "vae_subfolder": None, "scheduler": "ddim", "labels": None}


def main(argv: Sequence[str]) -> int:
    """Convert.

    Args:
        argv: arguments after ``tinyfusion convert``.

    Returns:
        Exit status.

    Raises:
        InputError: see :func:`~tinyfusion.tools.conversion.convert`, or wrong arguments.
    """
    parser = Parser(
        "convert",
        description="Write a checkpoint in another layout, with a model card.",
        epilog="layouts:\n" + "\n".join(f"  {name:<10} {text}" for name, text in LAYOUTS.items()),
    )
    parser.add_argument("source", metavar="SRC", help="file, folder, packaged model or hub id")
    parser.add_argument("target", metavar="DST", help="file (public) or folder to write")
    parser.add_argument("--to", choices=LAYOUTS, required=True, help="layout of DST")
    parser.add_argument("--half", action="store_true", help="store float16 (default: float32)")
    parser.add_argument("--overwrite", action="store_true", help="replace a model at DST")
    parser.add_argument(
        "--backbone",
        help="what SRC is expected to be: a family (dit, sit, mar), a preset, or the dotted name "
        "of a class of your own",
    )
    parser.add_argument("--num-heads", type=int, help="attention heads, where SRC does not say")
    parser.add_argument(
        "--weights", help="which of SRC's weights, such as model (default: the averaged ones)"
    )
    pipeline = parser.add_argument_group("options of --to diffusers")
    pipeline.add_argument("--vae", help="folder or hub id of an AutoencoderKL to put in")
    pipeline.add_argument("--vae-subfolder", help="folder inside --vae, such as vae in a pipeline")
    pipeline.add_argument(
        "--scheduler",
        choices=("ddim", "ddpm", "dpm"),
        default="ddim",
        help="sampler of the pipeline (default: ddim)",
    )
    pipeline.add_argument(
        "--labels", help="class names: 'imagenet', or a JSON file with one name per class"
    )
    given = parser.parse_args(argv)
    if given.to != "diffusers":
        for key, default in _ONLY_DIFFUSERS.items():
            if getattr(given, key) != default:
                raise InputError(f"--{key.replace('_', '-')} has no meaning with --to {given.to}")

    from tinyfusion.tools.conversion import convert  # with torch, which --help does not need

    convert(**vars(given))
    return 0
