"""LoRA adapters of a full model, carried over to a model that was pruned from it.

An adapter belongs to its blocks by number, and pruning numbers the blocks anew. The numbers that
a pruned model recorded (``kept_from``) say which adapters stay and what they are called now.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.public_files import DIFFUSERS_BLOCKS
from tinyfusion.checkpoints.block_places import BlockPlaces
from tinyfusion.checkpoints.construct import to_backbone
from tinyfusion.checkpoints.diffusers_folder import diffusers_files_of
from tinyfusion.checkpoints.layout import ADAPTER_FILE, ADAPTER_WEIGHTS
from tinyfusion.checkpoints.lineage import source_depth
from tinyfusion.checkpoints.read import read_checkpoint
from tinyfusion.checkpoints.tensors import cleaned, read_safetensors, write_tensors
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json

log = logging.getLogger(__name__)

_PREFIX = "base_model.model."

# base_model.model.<module>.<kind>.weight, with <kind> lora_A, lora_embedding_B and so on.
_ADAPTED = re.compile(r"(?P<module>.+?)\.lora_(?P<kind>\w+)(\.weight|\.bias)?")

# Ways of peft to adapt what has no module of its own; renaming modules would not carry them over.
_UNSUPPORTED = ("layer_replication", "target_parameters", "trainable_token_indices", "use_bdlora")


@dataclass(frozen=True)
class Remapped:
    """The outcome of carrying an adapter over.

    Attributes:
        folder: where the new adapter is.
        renamed: adapted modules by their names in the full model and in the pruned one.
        dropped: adapted modules of blocks that were removed, by their names in the full model.
        dropped_blocks: the indices of those blocks.
    """

    folder: Path
    renamed: dict[str, str]
    dropped: list[str]
    dropped_blocks: list[int]


def remap_lora(
    adapter: Path | str, model: Path | str, output: Path | str, overwrite: bool = False
) -> Remapped:
    """Carry a LoRA adapter that peft saved for the full model over to a pruned one.

    On the pruned model the new adapter computes what the old one computes on the full model after
    the same blocks are removed from it.

    Args:
        adapter: folder with ``adapter_config.json`` and ``adapter_model.safetensors``, for a
            model of ours or of diffusers (whose module names have ``transformer_blocks``).
        model: the pruned model, in any layout that :func:`~tinyfusion.load` reads.
        output: folder to write.
        overwrite: replace an adapter there.

    Returns:
        The new folder, the modules renamed and those dropped.

    Raises:
        InputError: not such an adapter, a model that was not pruned, an adapter that does not
            fit the model it was pruned from, nothing left of the adapter, or ``output`` exists or
            can't be written.
    """
    adapter, output = Path(adapter).expanduser(), Path(output).expanduser()
    _check_output(adapter, output, overwrite)
    config, state = _read(adapter)
    checkpoint = read_checkpoint(model)
    if checkpoint.kept_from is None:
        raise InputError(
            f"{model}: records no kept blocks, so it was not pruned by tinyfusion and there is "
            "nothing to remap by; give the pruned model's own folder or export"
        )
    net = to_backbone(checkpoint, release=True)
    try:
        places = BlockPlaces(net)
    except InputError as error:
        raise InputError(f"{model}: {error}") from None
    old_modules = _adapted_modules(state, places)
    _check_source(old_modules, places, source_depth(checkpoint), checkpoint.path, adapter)

    renamed = {name: places.renamed(name) for name in old_modules}
    kept = {old: new for old, new in renamed.items() if new is not None}
    dropped = [old for old, new in renamed.items() if new is None]
    if not kept:
        raise InputError(
            f"{adapter}: adapts removed blocks only; nothing of it is left for {model}"
        )
    new_state: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new_name = places.renamed(name)
        if new_name is not None:
            new_state[new_name] = tensor
    _check_shapes(new_state, net, adapter, model)
    new_config = _remapped_config(config, kept, places)

    try:
        output.mkdir(parents=True, exist_ok=True)
        # Weights without their configuration are no adapter: it comes last.
        (output / ADAPTER_FILE).unlink(missing_ok=True)
        write_tensors(output / ADAPTER_WEIGHTS, _as_stored(new_state))
        write_json(output / ADAPTER_FILE, new_config)
    except OSError as error:
        raise InputError(f"{output} could not be written: {error}") from None
    gone = {places.index(place) for name in dropped if (place := places.find(name))}
    return Remapped(output, kept, dropped, sorted(gone))


def _check_output(adapter: Path, output: Path, overwrite: bool) -> None:
    if output.resolve() == adapter.resolve():
        raise InputError(f"output={output}: is the adapter itself; give another folder")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{output} exists; give another name, or --overwrite to replace it")
    if not (output / ADAPTER_FILE).is_file():
        raise InputError(f"{output}: holds no adapter, so --overwrite does not replace it")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of an adapter, the latter without peft's prefix."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; valid: the folder of a peft adapter")
    config = read_json(folder / ADAPTER_FILE, "adapter config")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else None
        raise InputError(f"{folder / ADAPTER_FILE}: peft_type is {found!r}; valid: 'LORA'")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise InputError(
                f"{folder / ADAPTER_FILE}: {key}={config[key]!r} can't be remapped; valid: "
                "adapters of whole modules (target_modules)"
            )
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise InputError(f"{path}: does not exist; valid: an adapter saved by peft as safetensors")
    state = cleaned(path, read_safetensors(path))
    wrong = [name for name in state if not name.startswith(_PREFIX)]
    if wrong:
        raise InputError(f"{path}: tensor {wrong[0]!r} is not named {_PREFIX}..., as peft does")
    return config, {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}


def _adapted_modules(state: Mapping[str, Tensor], places: BlockPlaces) -> list[str]:
    """Names of the modules that have low-rank matrices, by block."""
    matches = (_ADAPTED.fullmatch(name) for name in state)
    modules = {match["module"] for match in matches if match}

    def order(name: str) -> tuple[int, str]:
        place = places.find(name)
        return (-1 if place is None else places.index(place), name)

    return sorted(modules, key=order)


def _check_source(
    modules: list[str], places: BlockPlaces, depth: int | None, model: Path, adapter: Path
) -> None:
    """Refuse adapters that can't be of the model that this one was pruned from."""
    if not modules:
        raise InputError(f"{adapter / ADAPTER_WEIGHTS}: holds no LoRA matrices")
    copied = [name for name in modules if re.search(r"transformer_blocks\.\d+\.norm1\.emb\.", name)]
    if copied:
        raise InputError(
            f"{adapter}: adapts {copied[0]}: diffusers' copies of the timestep MLP and the label "
            "table must stay alike, and the output layer uses those of block 0, which is another "
            "block after pruning; valid: adapters that leave norm1.emb alone"
        )
    found = {name: place for name in modules if (place := places.find(name))}
    for name, place in reversed(found.items()):
        size = places.size(place, depth)
        if size is not None and place.block >= size:
            raise InputError(
                f"{adapter}: {name} adapts block {place.block}, but the model that {model} was "
                f"pruned from has blocks 0..{size - 1} there; it belongs to another model"
            )
    if places.are_own(found.values()):
        log.warning(
            "%s adapts exactly %s, as many as the pruned model has: it is taken for one of the "
            "full model; an adapter trained on the pruned model needs no remapping",
            adapter,
            ", ".join(f"{name} 0..{size - 1}" for name, size in places.sizes.items() if size),
        )


def _check_shapes(
    state: Mapping[str, Tensor], net: Backbone, adapter: Path, model: Path | str
) -> None:
    """Refuse adapters whose matrices don't fit the modules of the pruned model."""
    shapes = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    if any(f"{DIFFUSERS_BLOCKS}." in name for name in state):
        stored = diffusers_files_of(net).write(net)[0]
        shapes = {name: tuple(t.shape) for name, t in stored.items()}
    for name, tensor in state.items():
        match = _ADAPTED.fullmatch(name)
        if match is None:
            continue
        weight = shapes.get(f"{match['module']}.weight")
        if weight is None:
            raise InputError(
                f"{adapter}: adapts {match['module']}, which {model} does not have; it belongs to "
                "another kind of model"
            )
        # A maps from the module's inputs, B to its outputs.
        side = {"A": 1, "B": 0}.get(match["kind"])
        if side is not None and len(weight) > 1 and tensor.shape[side] != weight[side]:
            raise InputError(
                f"{adapter}: {name} has shape {tuple(tensor.shape)}, but {match['module']} of "
                f"{model} has weights of shape {weight}; it belongs to a model of another width"
            )


def _remapped_config(
    config: dict[str, Any], kept: Mapping[str, str], places: BlockPlaces
) -> dict[str, Any]:
    """The configuration with every adapted module by its full name.

    What chose the modules by pattern or number (``target_modules``, ``layers_to_transform``,
    ``rank_pattern``, ``alpha_pattern``) meant the numbers of the full model.
    """
    from peft.utils.other import get_pattern_key  # slow to import

    new = dict(config)
    new["target_modules"] = sorted(kept.values())
    for key in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        if key in new:
            new[key] = None
    for key, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        pattern = config.get(key) or {}
        values = {
            place: pattern.get(get_pattern_key(list(pattern), old), config.get(default))
            for old, place in kept.items()
        }
        # The pattern is a regular expression on the end of a name.
        new[key] = {
            re.escape(place): value
            for place, value in values.items()
            if value != config.get(default)
        }
    saved = config.get("modules_to_save")
    if saved:
        renamed = (places.renamed(name) for name in saved)
        new["modules_to_save"] = [name for name in renamed if name is not None] or None
    # It was the full model's; peft would look for it there.
    new["base_model_name_or_path"] = None
    return new


def _as_stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under peft's names."""
    return {_PREFIX + name: tensor.contiguous() for name, tensor in state.items()}
