"""Facts about a file as aligned plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from tinyfusion.text import readable_amount, readable_bytes

WIDTH = 100

Row = tuple[str, str]


def report(facts: Mapping[str, Any]) -> str:
    """Text for the terminal, without a newline at the end.

    Args:
        facts: what :func:`tinyfusion.tools.inspect.examine` found.
    """
    rows = {
        "model": _model,
        "decision": _decision,
        "latency table": _latency,
        "adapter": _adapter,
        "resume checkpoint": _resume,
    }[facts["kind"]](facts)
    return "\n".join([str(facts["path"]), *_aligned(list(rows))])


def _model(facts: Mapping[str, Any]) -> Iterator[Row]:
    yield from _architecture(facts) if "convention" in facts else _own_architecture(facts)
    for note in facts["notes"]:
        yield "note", note
    if facts["also_holds"]:
        yield "also holds", ""
        yield from _nested(facts["also_holds"])
    yield "provenance", "" if facts["provenance"] else "not recorded"
    yield from _nested(facts["provenance"])


def _own_architecture(facts: Mapping[str, Any]) -> Iterator[Row]:
    """Of a model whose class is from outside this package: what its file records."""
    yield "architecture", facts["architecture"]
    yield "format", facts["format"]
    yield "depth", f"{facts['depth']} blocks" if facts["depth"] else "not in the file"
    yield from _kept(facts)
    yield "arguments", "" if facts["arguments"] else "none"
    yield from _nested(facts["arguments"])
    yield "parameters", f"{facts['parameters']:,}"
    yield from _file(facts)


def _kept(facts: Mapping[str, Any]) -> Iterator[Row]:
    kept = facts["kept_from"]
    if kept is not None:
        borders = facts["source_borders"]
        where = f", whose next stack begins at {_listed(borders)}" if borders else ""
        yield "kept blocks", f"{_listed(kept)} (numbers in the model it was pruned from{where})"


def _architecture(facts: Mapping[str, Any]) -> Iterator[Row]:
    same = "" if facts["backbone"] else ": their files look the same"
    yield "architecture", facts["architecture"] + same
    yield "format", facts["format"]
    yield "depth", f"{facts['depth']} blocks"
    if len(facts["stacks"]) > 1:
        yield "stacks", _pairs(facts["stacks"])
    yield from _kept(facts)
    if facts["removed_branches"]:
        yield "without", f"{_listed(facts['removed_branches'])} (numbers in this model)"
    yield "width", str(facts["width"])
    yield "heads", _heads(facts)
    if facts["attention_width"] != facts["width"]:
        yield "attention width", f"{facts['attention_width']} (heads don't fill the width)"
    yield "MLP width", str(facts["mlp_width"])
    assumed = " (assumed: not in the file)" if "patch_size" in facts["assumed"] else ""
    yield "patch size", f"{facts['patch_size']}{assumed}"
    size = facts["input_size"]
    yield "input", f"{facts['in_channels']} x {size} x {size}"
    null = "and the null class" if facts["null_class"] else "without null class"
    yield "classes", f"{facts['num_classes']} {null}"
    sigma = "with" if facts["learn_sigma"] else "without"
    yield "output", f"{facts['out_channels']} channels, {sigma} learned sigma"
    if facts["further"]:
        yield "further", _pairs(facts["further"])
    yield "parameters", f"{facts['parameters']:,}"
    yield from _file(facts)
    numbers = facts["convention"]
    if numbers is not None:
        yield (
            "convention",
            f"frequency divisor {numbers['frequency_divisor']:g}, norm epsilon "
            f"{numbers['mlp_norm_eps']:g}: {numbers['meaning']}",
        )


def _pairs(values: Mapping[str, Any]) -> str:
    return _listed(f"{key} {value}" for key, value in values.items())


def _heads(facts: Mapping[str, Any]) -> str:
    if facts["heads"] is not None:
        return str(facts["heads"])
    if facts["heads_by_width"] is not None:
        return f"{facts['heads_by_width']} (as published for this width; the file does not say)"
    return "not in the file: give num_heads= to load it"


def _file(facts: Mapping[str, Any]) -> Iterator[Row]:
    yield "dtype", ", ".join(facts["dtypes"])
    yield "size", readable_bytes(facts["bytes"])
    yield "SHA-256", facts["sha256"]


def _decision(facts: Mapping[str, Any]) -> Iterator[Row]:
    kinds = {"kept": "blocks", "replaced": "intervals", "removed": "branches", "widths": "channels"}
    which = " and ".join(word for key, word in kinds.items() if key in facts)
    yield "this is", f"a decision: which {which} of a model stay; use it as decision=FILE"
    yield "method", facts["method"]
    if "kept" in facts:
        yield "scheme", facts["scheme"] or "none: blocks were chosen without groups"
        yield "depth", f"{facts['depth']} of {facts['source_depth']} blocks stay"
        yield "kept blocks", _listed(facts["kept"])
        yield "dropped blocks", _listed(facts["dropped"])
        if facts["confidence"]:
            values = _listed(f"{value:.2f}" for value in facts["confidence"])
            yield "confidence", f"{values} by group"
    for interval in facts.get("replaced", ()):
        blocks = f"{interval['start']}..{interval['stop'] - 1}"
        yield "replaced", f"blocks {blocks} by one that starts as block {interval['block']}"
    if "removed" in facts:
        yield "removed branches", f"{_listed(facts['removed'])} of blocks that stay"
    if facts["budget"] and "widths" not in facts:
        yield from _budget(facts["budget"])
    if facts["margin"] is not None:
        yield "margin", f"{facts['margin']:.3f}: the least sure unit's probability of this choice"
    if "widths" in facts:
        yield from _widths(facts)
    yield from _evidence(facts)


def _budget(budget: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of a decision's budget and of what else was asked for."""
    units = budget.get("units", "blocks")
    for measure in ("keep", "parameters", "macs", "latency"):
        if measure not in budget:
            continue
        limit, whole = budget[measure], budget.get("whole")
        if "costs" in budget and whole is None:
            whole = budget["rest"] + sum(budget["costs"].values())
        share = f" ({limit / whole:.1%} of {readable_amount(whole)})" if whole else f" {units}"
        yield "budget", f"{measure} {readable_amount(limit)}{share}"
    yield "chosen among", str(units)
    if "protected" in budget:
        yield "protected", _listed(budget["protected"])
    for minimum in budget.get("minimums", ()):
        yield "at least", f"{minimum['at_least']} of {minimum['units']}"
    if "measured" in budget:
        yield "measured on", _setting(budget["measured"])


def _setting(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _latency(facts: Mapping[str, Any]) -> Iterator[Row]:
    yield "this is", "a table of latencies; use it as budget.table=FILE"
    yield "measured on", _setting(facts["setting"])
    yield "whole forward", f"{1e3 * facts['whole']:.3f} ms"
    yield "without units", f"{1e3 * facts['rest']:.3f} ms"
    for name, seconds in facts["seconds"].items():
        yield name, f"{1e3 * seconds:.3f} ms"


def _widths(facts: Mapping[str, Any]) -> Iterator[Row]:
    for name, width in facts["widths"].items():
        yield name, f"{width} of {facts['source_widths'][name]}"
    asked = "" if facts["ratio"] is None else f", {100 * facts['ratio']:g} % asked for"
    yield (
        "parameters",
        f"{facts['parameters']:,} of {facts['source_parameters']:,} "
        f"({100 * facts['reached']:.1f} % removed{asked})",
    )
    yield "groups", f"{len(facts['groups'])} sets of channels, each cut in its own places"


def _evidence(facts: Mapping[str, Any]) -> Iterator[Row]:
    if facts["scores"]:
        yield "evidence", ", ".join(facts["scores"])
    yield "seed", str(facts["seed"])
    yield "source SHA-256", facts["source_sha256"] or "not recorded"
    yield "written by", f"tinyfusion {facts['version']}"


def _adapter(facts: Mapping[str, Any]) -> Iterator[Row]:
    yield "format", facts["format"]
    yield "rank, alpha", f"{facts['rank']}, {facts['alpha']}"
    targets = facts["targets"]
    yield "targets", ", ".join(targets) if isinstance(targets, list) else str(targets)
    yield "base model", facts["base_model"] or "not recorded"
    for name, numbers in facts["blocks"].items() or [("blocks", ["none"])]:
        yield name, _listed(numbers)
    yield "parameters", f"{facts['parameters']:,} in {facts['tensors']} tensors"
    yield from _file(facts)


def _resume(facts: Mapping[str, Any]) -> Iterator[Row]:
    yield "this is", facts["format"]
    yield "step", str(facts["step"])
    yield "holds", f"{facts['tensors']} tensors of the trained module, optimizer and loop state"
    yield "size", readable_bytes(facts["bytes"])
    yield "written by", f"Lightning {facts['lightning']}"


def _nested(values: Any, level: int = 1) -> Iterator[Row]:
    """Rows of a tree of mappings, deeper ones further in."""
    for key, value in values.items():
        name = "  " * level + str(key)
        if isinstance(value, Mapping) and value:
            yield name, ""
            yield from _nested(value, level + 1)
        else:
            yield name, _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        items = (f"[{_plain(item)}]" if isinstance(item, list) else _plain(item) for item in value)
        return ", ".join(items) or "none"
    return "none" if value is None or value == {} else str(value)


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _aligned(rows: list[Row]) -> Iterator[str]:
    """Names in one column and values in another; what is nested has columns of its own."""
    widths = [max((len(n) for n, _ in rows if n.startswith(" ") == b), default=0) for b in (0, 1)]
    for name, value in rows:
        width = widths[name.startswith(" ")] + 2
        # Paths and hashes are never split.
        yield from textwrap.wrap(
            value, WIDTH, initial_indent=f"  {name:<{width}}", break_long_words=False,
            subsequent_indent=" " * (width + 2), break_on_hyphens=False,
        ) or [f"  {name}"]  # fmt: skip
