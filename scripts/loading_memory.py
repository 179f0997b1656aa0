"""Peak memory of loading a model, over the size of that model.

    python scripts/loading_memory.py [--megabytes 200]

Prints one line a kind of file: the most memory that was resident while `tinyfusion.load` ran,
above what the process held before, over the bytes of the model's tensors. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import load, save_model

CASES = {
    "float32 -> float32": ("float32", None),
    "bfloat16 -> bfloat16": ("bfloat16", "auto"),
    "bfloat16 -> float32": ("bfloat16", None),
    "float32, PyTorch file from before 1.6 -> float32": ("old.pt", None),
}
"""Name of the file, and ``dtype`` that it is loaded with."""

_NO_RESERVE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Lets glibc give freed memory back at once, of which it keeps up to 64 MB otherwise."""


def network(megabytes: int) -> DiT:
    """A DiT of about so many million bytes in float32, in tensors of 6 million at most."""
    width = 512
    depth = max(1, round(megabytes * 1e6 / (18 * width * width * 4)))
    return DiT(hidden_size=width, depth=depth, num_heads=8, num_classes=10)


def write_models(folder: Path, megabytes: int) -> None:
    """Write one file for each of `CASES`."""
    folder.mkdir()
    net = network(megabytes)
    save_model(net, folder / "float32")
    torch.save(net.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
    save_model(net.to(torch.bfloat16), folder / "bfloat16")


def status(key: str) -> int:
    """A number of bytes that the kernel reports for this process, such as ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def peak_ratio(path: Path, small: Path, dtype: str | None) -> float:
    """Peak of loading ``path`` over the size of what is loaded.

    Args:
        path: the model.
        small: another one, loaded before so that code and libraries are in memory.
        dtype: see `tinyfusion.load`.
    """
    load(small, num_heads=8, dtype=dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    net = load(path, num_heads=8, dtype=dtype)
    size = sum(tensor.nbytes for tensor in net.state_dict().values())
    return (status("VmHWM") - before) / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200, help="size of the model in float32")
    parser.add_argument("--measure", type=Path, help="folder of models that were written before")
    args = parser.parse_args()
    if args.measure is not None:
        for title, (name, dtype) in CASES.items():
            ratio = peak_ratio(args.measure / "large" / name, args.measure / "small" / name, dtype)
            print(f"{title}: {ratio:.3f} times the model")
        return
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder) / "large", args.megabytes)
        write_models(Path(folder) / "small", 1)
        command = [sys.executable, __file__, "--measure", folder]
        subprocess.run(command, check=True, env=os.environ | _NO_RESERVE)


if __name__ == "__main__":
    main()
