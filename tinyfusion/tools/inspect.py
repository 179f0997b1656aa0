"""``tinyfusion inspect FILE``: what a file is, without running anything of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyfusion.tools.arguments import Parser

_DESCRIPTION = """\
Print what a file or folder is: a checkpoint in any supported layout, a decision, a table of
latencies, a LoRA adapter or a resume checkpoint. Nothing in it is executed.
"""

_EXAMPLES = """\
examples:
  tinyfusion inspect DiT-XL-2-256x256.pt
  tinyfusion inspect outputs/run/FOLDER/recovered
  tinyfusion inspect outputs/run/FOLDER/decision.json
  tinyfusion inspect facebook/DiT-XL-2-256 --json     (a hub id)
"""


def main(argv: Sequence[str]) -> int:
    """Run the tool.

    Args:
        argv: arguments after ``tinyfusion inspect``.

    Returns:
        Exit status 0.

    Raises:
        InputError: wrong arguments, no such file, or one that is damaged or of no known kind.
    """
    parser = Parser("inspect", description=_DESCRIPTION, epilog=_EXAMPLES)
    parser.add_argument(
        "file", metavar="FILE", help="file, folder, packaged model (digits) or hub id owner/name"
    )
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.add_argument(
        "--weights", help="which of a file's weights, such as model (default: the averaged ones)"
    )
    options = parser.parse_args(argv)

    from tinyfusion.errors import InputError
    from tinyfusion.tools.facts import report

    try:
        facts = examine(options.file, options.weights)
    except InputError as error:
        raise InputError(str(error).replace("weights=", "--weights ")) from None
    print(json.dumps(facts, indent=2) if options.json else report(facts))
    return 0


def examine(name: Path | str, weights: str | None = None) -> dict[str, Any]:
    """Facts about whatever a name means, as data that JSON can hold.

    Args:
        name: anything that :func:`tinyfusion.checkpoints.resolve` understands.
        weights: which of a file's weights; ``None`` for the averaged ones.

    Returns:
        Facts; ``kind`` says which: ``model``, ``decision``, ``latency table``, ``adapter`` or
        ``resume checkpoint``.

    Raises:
        InputError: no such file, or one that is damaged or of no known kind.
    """
    from tinyfusion.checkpoints import read_checkpoint, resolve
    from tinyfusion.checkpoints.describe import describe
    from tinyfusion.checkpoints.layout import ADAPTER_FILE, ADAPTER_WEIGHTS

    path = resolve(name)
    found: dict[str, Any] | None = None
    if path.is_dir():
        if (path / ADAPTER_FILE).is_file():
            found = _adapter(path)
    elif path.name == ADAPTER_FILE or (
        path.name == ADAPTER_WEIGHTS and path.with_name(ADAPTER_FILE).is_file()
    ):
        found = _adapter(path.parent)
    elif path.suffix == ".json":
        found = _decision(path) or _latency(path)
    else:
        found = _resume_checkpoint(path)
    return {"path": str(name), **(found or describe(read_checkpoint(path, weights)))}


def _decision(path: Path) -> dict[str, Any] | None:
    """Facts about a decision; ``None`` for other JSON files."""
    from tinyfusion.decision import Decision
    from tinyfusion.decision_files import is_decision
    from tinyfusion.files import read_json

    content = read_json(path, "JSON")
    if not is_decision(content):
        return None
    decision = Decision.from_dict(content, where=f"decision file {str(path)!r}")
    facts: dict[str, Any] = {"kind": "decision", **decision.summary()}
    if decision.is_about_blocks:
        probabilities = decision.probabilities
        facts |= {
            "scheme": None if decision.groups is None else str(decision.groups),
            "depth": len(decision.origins),
            "dropped": list(decision.dropped),
            "confidence": [max(group) for group in probabilities] if probabilities else None,
        }
    if decision.resized is not None:
        facts["groups"] = {name: len(kept) for name, kept in decision.resized.kept.items()}
        facts["source_groups"] = decision.resized.source_sizes
    return facts | {
        "budget": decision.budget,
        "seed": decision.seed,
        "source_sha256": decision.source_sha256,
        "version": decision.version,
        "margin": decision.scores.get("margin"),
        "scores": sorted(decision.scores),
    }


def _latency(path: Path) -> dict[str, Any] | None:
    """Facts about a table of latencies; ``None`` for other JSON files."""
    from tinyfusion.files import read_json
    from tinyfusion.metrics.latency import LatencyTable

    content = read_json(path, "JSON")
    if not isinstance(content, dict) or not {"setting", "seconds"} <= set(content):
        return None
    return {"kind": "latency table", **asdict(LatencyTable.load(path))}


def _adapter(folder: Path) -> dict[str, Any]:
    """Facts about a PEFT adapter folder."""
    from tinyfusion.checkpoints.layout import ADAPTER_FILE, ADAPTER_WEIGHTS
    from tinyfusion.checkpoints.tensors import digest_of, dtypes_of, read_safetensors
    from tinyfusion.errors import InputError
    from tinyfusion.files import read_json

    config = read_json(folder / ADAPTER_FILE, "adapter config")
    if not isinstance(config, dict) or "peft_type" not in config:
        raise InputError(f"{folder / ADAPTER_FILE}: not the config of a PEFT adapter")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise InputError(f"{folder}: a PEFT adapter without {weights.name}")
    state = read_safetensors(weights)
    blocks: dict[str, set[int]] = {}
    for name in state:
        # Numbers of modules in lists; what is adapted itself may be numbered, too.
        match = re.match(r"base_model\.model\.(.+?)\.(\d+)\.(?!lora_)", name)
        if match:
            blocks.setdefault(match[1], set()).add(int(match[2]))
    targets = config.get("target_modules")
    return {
        "kind": "adapter",
        "format": f"PEFT adapter ({config['peft_type']})",
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "targets": sorted(targets) if isinstance(targets, list) else targets,
        "base_model": config.get("base_model_name_or_path"),
        "blocks": {name: sorted(numbers) for name, numbers in sorted(blocks.items())},
        "tensors": len(state),
        "parameters": sum(tensor.numel() for tensor in state.meta.values()),
        "dtypes": list(dtypes_of(state)),
        "bytes": weights.stat().st_size,
        "sha256": digest_of((weights,)),
    }


def _resume_checkpoint(path: Path) -> dict[str, Any] | None:
    """Facts about what a run of ours is resumed from; ``None`` for other files."""
    from tinyfusion.checkpoints.tensors import is_safetensors, read_torch
    from tinyfusion.checkpoints.training_file import is_lightning, lightning_summary

    content = None if is_safetensors(path) else read_torch(path)
    if not is_lightning(content) or "tinyfusion" not in content:
        return None
    return {
        "kind": "resume checkpoint",
        "format": lightning_summary(path, content),
        "step": content.get("global_step"),
        "tensors": len(content.get("state_dict", {})),
        "lightning": str(content["pytorch-lightning_version"]),
        "bytes": path.stat().st_size,
    }
