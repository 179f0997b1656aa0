"""How good is a digits teacher: depth use, FID against all and held-out digits, memorisation."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tinyfusion.checkpoints import load
from tinyfusion.data.digits import Digits, digit_split
from tinyfusion.figures.grid import image_grid
from tinyfusion.files import write_json
from tinyfusion.metrics.fidelity import fidelity, real_halves_fid, subsample
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.metrics.memorisation import nearer_than_heldout
from tinyfusion.metrics.reporting import settings_of
from tinyfusion.pixels import to_uint8
from tinyfusion.samplers.generate import balanced_labels, generate
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.settings.packaged import TEACHERS, process_and_sampler
from tinyfusion.studies.depth_use import depth_use


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", choices=TEACHERS, nargs="?", default="dit_digits")
    parser.add_argument("--checkpoint", help="a model of this backbone; default: the packaged one")
    parser.add_argument("--output", type=Path, default=Path("outputs/teacher_report"))
    parser.add_argument("--seeds", type=int, default=3, help="sampling seeds")
    arguments = parser.parse_args()

    net = load(arguments.checkpoint or TEACHERS[arguments.backbone])
    process, sampler = process_and_sampler(arguments.backbone)
    train, train_labels, held, held_labels = digit_split()
    real = Digits().reference()
    held_out = HeldOutLoss(process, held, held_labels)
    calibration = HeldOutLoss(process, train[:1024], train_labels[:1024], repeats=1)
    labels = balanced_labels(len(real), 10)
    per_seed = []
    for seed in range(arguments.seeds):
        floats = generate(net, process, sampler, labels, seed)
        samples = to_uint8(floats)
        few = subsample(samples, len(held), seed)
        per_seed.append(
            {
                "seed": seed,
                "fid_all": fidelity(samples, real)["fid"],
                "fid_all_at_297": fidelity(few, subsample(real, len(held), seed))["fid"],
                "fid_held_out_at_297": fidelity(few, to_uint8(held))["fid"],
                "fid_train_at_297": fidelity(few, subsample(to_uint8(train), len(held), seed))[
                    "fid"
                ],
                "nearness": nearer_than_heldout(floats, train, held),
            }
        )
    report = {
        "held_out": held_out(net),
        "train": calibration(net),
        "depth_use": depth_use(net, held_out, calibration),
        "samples": per_seed,
        "floor_real_halves": [real_halves_fid(real, seed) for seed in range(3)],
        "floor_train_vs_held_out_at_297": fidelity(
            subsample(to_uint8(train), len(held), 0), to_uint8(held)
        )["fid"],
        "sampler": settings_of(sampler),
    }
    write_json(arguments.output / "report.json", report)
    for scale in (1.0, 1.5):
        grid = generate(
            net, process, sampler, torch.arange(10).repeat_interleave(10), 7, Guidance(scale)
        )
        path = arguments.output / f"classes_guidance_{scale}.png"
        image_grid(to_uint8(grid), 10, path, row_labels=[str(c) for c in range(10)])
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
