"""Train the digits classifier that scores samples; writes weights and, beside them, a record."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from tinyfusion.data.digits import digit_split
from tinyfusion.files import sha256_of, write_atomic, write_json
from tinyfusion.metrics.classifier import ASSET, accuracy, train_classifier
from tinyfusion.version import __version__

BATCH_SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=Path("tinyfusion/assets") / ASSET)
    args = parser.parse_args()

    train_images, train_labels, held_images, held_labels = digit_split()
    net = train_classifier(train_images, train_labels, args.seed, args.steps, BATCH_SIZE)
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    write_atomic(args.output, lambda path: save_file(weights, path))
    record = {
        "command": (
            f"python scripts/train_digits_classifier.py --seed {args.seed} --steps {args.steps}"
        ),
        "data": "scikit-learn load_digits, 1500 images for training, 297 held out",
        "seed": args.seed,
        "steps": args.steps,
        "batch_size": BATCH_SIZE,
        "images_seen": args.steps * BATCH_SIZE,
        "train_images": len(train_images),
        "heldout_images": len(held_images),
        "train_accuracy": accuracy(net, train_images, train_labels),
        "heldout_accuracy": accuracy(net, held_images, held_labels),
        "parameters": sum(p.numel() for p in net.parameters()),
        "sha256": sha256_of(args.output),
        "tinyfusion_version": __version__,
        "torch_version": torch.__version__,
    }
    write_json(args.output.with_suffix(".json"), record)
    print(f"{args.output}: {record['heldout_accuracy']:.2%} of the held-out images are right")


if __name__ == "__main__":
    main()
