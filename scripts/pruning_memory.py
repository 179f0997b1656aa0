"""Peak memory of pruning, as the operating system counts it, over that of source and student.

  python scripts/pruning_memory.py                       half of DiT-B/2: blocks, then channels
  python scripts/pruning_memory.py --preset dit_l_2 --dtype bfloat16

Linux only. The last column should stay below 1.15: nothing that goes is copied.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
from pathlib import Path

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import build_empty
from tinyfusion.decision import Decision
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.metrics.memory import bytes_of
from tinyfusion.pruners.diff_pruning import DiffPruning
from tinyfusion.surgery import prune

LIMIT = 1.15
MIB = 2**20
COLUMNS = {
    "cut": Column("what stays"),
    "source_mib": Column("source (MiB)", ",.0f"),
    "student_mib": Column("student (MiB)", ",.0f"),
    "peak_mib": Column("peak (MiB)", ",.0f"),
    "ratio": Column("peak / (source + student)", ".3f"),
}


def memory(key: str) -> int:
    """Memory of this process in bytes: ``VmRSS`` now, ``VmHWM`` the peak since `forget_peak`."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def decisions(net: Backbone) -> dict[str, Decision]:
    """Decisions that remove about half of the network."""
    half = range(0, net.depth, 2)
    return {
        f"{len(half)} of {net.depth} blocks": Decision(tuple(half), net.depth),
        "channels, half of the parameters": Decision(resized=DiffPruning(ratio=0.5).resizing(net)),
    }


def measured(net: Backbone, decision: Decision) -> dict[str, float]:
    """Sizes in MiB and their ratio for one decision."""
    gc.collect()
    others = memory("VmRSS") - bytes_of(net)
    forget_peak()
    student = prune(net, decision)
    peak = memory("VmHWM") - others
    together = bytes_of(net) + bytes_of(student)
    return {
        "source_mib": bytes_of(net) / MIB,
        "student_mib": bytes_of(student) / MIB,
        "peak_mib": peak / MIB,
        "ratio": peak / together,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="dit_b_2")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options = parser.parse_args()
    net = build_empty(options.preset).to(getattr(torch, options.dtype))
    for parameter in net.parameters():
        parameter.data.fill_(1.0)  # memory is claimed when it is written to
    sizes = {name: measured(net, decision) for name, decision in decisions(net).items()}
    print(markdown_table([{"cut": name, **row} for name, row in sizes.items()], COLUMNS))
    return int(max(row["ratio"] for row in sizes.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
