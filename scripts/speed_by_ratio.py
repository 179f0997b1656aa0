"""How much faster a network gets as parameters go: blocks removed against widths cut.

Random weights of one network at many depths and widths; their forwards are timed in turn, so that
drifting load hits all alike. Writes speed.json and speed.png (TinyFusion, figure 4).

    python scripts/speed_by_ratio.py --output outputs/speed          (a narrow DiT, on a CPU)
    python scripts/speed_by_ratio.py --preset dit_xl_2 --device cuda --batch 32 --bfloat16
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tinyfusion.backbones.contract import Backbone, compile_blocks, count_parameters
from tinyfusion.backbones.presets import PRESETS, build, build_empty, preset, preset_family
from tinyfusion.errors import InputError
from tinyfusion.figures.speed import speed_by_ratio
from tinyfusion.files import write_json
from tinyfusion.metrics.speed import compare_speed, macs
from tinyfusion.pruners.diff_pruning import DiffPruning
from tinyfusion.version import __version__

NARROW = {
    "backbone": "dit",
    "input_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 256,
    "depth": 28,
    "num_heads": 8,
    "num_classes": 10,
}
"""A DiT as deep as XL, narrow enough for a CPU."""

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DEPTH, WIDTH = "depth", "width"


def variants(
    whole: dict[str, Any], depths: list[int], ratios: list[float], round_to: int
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kind, label and constructor arguments of every pruned network.

    Raises:
        InputError: depths or shares of parameters that can't be.
    """
    with torch.device("meta"):
        net = build_empty(whole)
    for depth in depths:
        if not 0 < depth < net.depth:
            raise InputError(f"depth {depth} must be between 1 and {net.depth - 1}")
        with torch.device("meta"):
            cut = build_empty(whole)
        cut.keep_blocks(range(depth))
        yield DEPTH, str(depth), {**whole, **cut.config()}
    for ratio in ratios:
        widths = DiffPruning(ratio=ratio, round_to=round_to).plan(net).widths
        label = str(next(iter(widths.values())))
        yield WIDTH, label, {**whole, **net.width_plan().fixed, **widths}


def forwards(net: Backbone, batch: int, device: torch.device) -> Callable[[], int]:
    """One forward of a batch."""
    inputs = net.example_inputs(batch, device)

    def run() -> int:
        with torch.inference_mode():
            net(*inputs)
        return batch

    return run


def ready(arguments: dict[str, Any], options: argparse.Namespace) -> Backbone:
    """A network with random weights as it is timed."""
    device = torch.device(options.device)
    with device:
        net = build(arguments).eval()
    if options.bfloat16:
        net = net.to(torch.bfloat16)
    if options.compile:
        compile_blocks(net, "inductor")
    return net


def positive(text: str) -> int:
    """A number as given on a command line.

    Raises:
        argparse.ArgumentTypeError: it is less than 1, or none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, metavar="NAME", help="such as dit_xl_2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=positive, default=2)
    parser.add_argument("--repeats", type=positive, default=5, help="timed rounds")
    parser.add_argument("--depths", type=int, nargs="+", help="default: every second")
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--round-to", type=int, default=8, help="widths are a multiple of this")
    parser.add_argument("--bfloat16", action="store_true", help="weights in half precision")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("outputs/speed"))
    options = parser.parse_args(argv)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: there is no GPU here")
    whole = dict(NARROW)
    if options.preset is not None:
        whole = {"backbone": preset_family(options.preset), **preset(options.preset)}

    with torch.device("meta"):
        depth = build_empty(whole).depth
    depths = options.depths or list(range(depth - 2, 1, -2))
    try:
        parts = list(variants(whole, depths, options.ratios, options.round_to))
    except InputError as error:
        parser.error(str(error))
    base = ready(whole, options)
    nets = {"whole": base}
    nets |= {f"{kind} {label}": ready(args, options) for kind, label, args in parts}
    device = torch.device(options.device)
    speeds = compare_speed(
        {name: forwards(net, options.batch, device) for name, net in nets.items()},
        repeats=options.repeats,
        warmup=2 if options.compile else 1,
    )

    def point(name: str, label: str) -> dict[str, Any]:
        parameters = count_parameters(nets[name])
        return {
            "label": label,
            "parameters": parameters,
            "macs": macs(nets[name]),
            "ratio": 1 - parameters / count_parameters(base),
            "it_per_s": speeds[name]["images_per_s"] / options.batch,
            "it_per_s_min": speeds[name]["images_per_s_min"] / options.batch,
            "it_per_s_max": speeds[name]["images_per_s_max"] / options.batch,
            "speed_up": speeds[name]["ratio"],
        }

    series: dict[str, list[dict[str, Any]]] = {DEPTH: [], WIDTH: []}
    for kind, label, _ in parts:
        series[kind].append(point(f"{kind} {label}", label))
    where = platform.machine()
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    settings = {
        "network": options.preset or whole,
        "device": f"{device.type} ({where})",
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "batch": options.batch,
        "dtype": "bfloat16" if options.bfloat16 else "float32",
        "compiled": options.compile,
        "rounds": options.repeats,
        "torch": torch.__version__,
        "tinyfusion": __version__,
    }
    content = {"settings": settings, "whole": point("whole", "whole"), "series": series}
    write_json(options.output / "speed.json", content)
    names = {DEPTH: "blocks removed (label: blocks left)", WIDTH: "widths cut (label: width left)"}
    speed_by_ratio(
        {names[kind]: points for kind, points in series.items()}, options.output / "speed.png"
    )
    print("kind   left  removed  it/s   speed-up  linear")
    for kind, points in series.items():
        for found in points:
            print(
                f"{kind:<6} {found['label']:>4}  {100 * found['ratio']:5.1f} %  "
                f"{found['it_per_s']:6.2f}  {found['speed_up']:6.2f}    "
                f"{1 / (1 - found['ratio']):5.2f}"
            )
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
