"""Make a pre-trained digits model the packaged teacher: float16 weights and provenance."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tinyfusion.checkpoints import load, read_checkpoint, save_model
from tinyfusion.checkpoints.locate import ASSETS, PACKAGED
from tinyfusion.data.digits import digit_split
from tinyfusion.files import read_json, write_json
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.settings.packaged import TEACHERS, process_and_sampler
from tinyfusion.text import readable_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", choices=TEACHERS)
    parser.add_argument("run", type=Path, help="folder of a finished 'tinyfusion pretrain'")
    parser.add_argument("--report", type=Path, help="report.json of scripts/teacher_report.py")
    arguments = parser.parse_args()

    asset = ASSETS / PACKAGED[TEACHERS[arguments.backbone]]
    process, _ = process_and_sampler(arguments.backbone)
    source = arguments.run / "model"
    provenance = read_checkpoint(source).provenance
    net = load(source)
    save_model(net, asset, provenance, half=True)
    _, _, held, labels = digit_split()
    held_out = HeldOutLoss(process, held, labels)
    exact, stored = held_out.predict(net), held_out.predict(load(asset))
    rounding = {
        "dtype": "float16",
        "held_out_loss_float32": held_out.of(exact)["loss"],
        "held_out_loss_float16": held_out.of(stored)["loss"],
        "largest_prediction_difference": float((exact - stored).abs().max()),
    }
    report = read_json(arguments.report, "report") if arguments.report else None
    write_json(asset / "provenance.json", provenance | {"rounding": rounding, "report": report})
    size = sum(file.stat().st_size for file in asset.iterdir())
    print(f"{asset}: {readable_bytes(size)}; {rounding}; torch {torch.__version__}")


if __name__ == "__main__":
    main()
