"""LoRA adapters of a full model on a model that was pruned from it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import load, remap_lora, save_diffusers, save_model, save_public
from tinyfusion.cli import main
from tinyfusion.errors import InputError
from tinyfusion.surgery import prune

KEPT = [1, 2, 4, 11]
DEPTH = 12


def tiny_dit(width=16, depth=DEPTH):
    net = DiT(4, 2, 2, hidden_size=width, depth=depth, num_heads=2, num_classes=3).eval()
    draws = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2, generator=draws)
    return net


def adapted(net, folder, **options):
    """A peft model with random adapters, saved to ``folder``."""
    model = get_peft_model(copy.deepcopy(net), LoraConfig(**options))
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.2)
    model.save_pretrained(folder)
    return model.eval()


def decision(kept=KEPT, source_depth=DEPTH):
    return {"decision": {"kept": list(kept), "source_depth": source_depth}}


@pytest.fixture
def full():
    return tiny_dit()


@pytest.fixture
def pruned(full, tmp_path):
    return save_model(prune(full, KEPT), tmp_path / "pruned", decision())


INPUTS = torch.randn(3, 2, 4, 4), torch.tensor([1, 500, 999]), torch.tensor([0, 2, 3])

ADAPTERS = {
    "list": {"target_modules": ["qkv", "fc1"]},
    "regex": {"target_modules": r"blocks\.(0|1|4|5)\..*(qkv|fc2)|final_layer\.linear"},
    "all linear": {"target_modules": "all-linear"},
    "numbers": {
        "target_modules": ["proj", "mlp.fc2"],
        "layers_to_transform": [1, 3, 11],
        "layers_pattern": "blocks",
    },
    "patterns": {
        "target_modules": ["qkv", "fc1", "x_embedder.proj"],
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"blocks.1.attn.qkv": 3, r"blocks\.(4|11)\.mlp\.fc1": 2},
        "alpha_pattern": {"blocks.11.attn.qkv": 20, "fc1": 9},
    },
    "embedding and saved": {
        "target_modules": ["y_embedder.embedding_table", "attn.proj"],
        "modules_to_save": ["blocks.4.mlp.fc1", "blocks.5.mlp.fc1", "final_layer.linear"],
    },
    "dora, scaled, biases": {
        "target_modules": ["qkv", "adaLN_modulation.1"],
        "use_dora": True,
        "use_rslora": True,
        "bias": "lora_only",
        "exclude_modules": r"blocks\.2\..*",
    },
}


@pytest.mark.parametrize("name", ADAPTERS)
@torch.no_grad()
def test_same_function_as_adapted_then_pruned(name, full, pruned, tmp_path):
    reference = adapted(full, tmp_path / "adapter", **ADAPTERS[name])
    result = remap_lora(tmp_path / "adapter", pruned, tmp_path / "new")
    found = PeftModel.from_pretrained(load(pruned), result.folder).eval()

    reference.base_model.model.keep_blocks(KEPT)
    expected = reference(*INPUTS)
    assert torch.equal(found(*INPUTS), expected)
    # The adapter must matter.
    assert (expected - load(pruned)(*INPUTS)).abs().max() > 1e-2
    # peft only warns of what it does not find: nothing may be left at its start.
    stored = load_file(result.folder / "adapter_model.safetensors")
    loaded = {n.replace(".default", "") for n, _ in found.named_parameters() if "lora_" in n}
    bare = {name.removesuffix(".weight") for name in loaded}
    assert bare == {name.removesuffix(".weight") for name in stored if "lora_" in name}


def test_dropped_and_renamed_are_listed(full, pruned, tmp_path, capsys):
    adapted(
        full,
        tmp_path / "adapter",
        target_modules=["qkv"],
        layers_to_transform=[0, 4, 5],
        layers_pattern="blocks",
    )
    arguments = [str(tmp_path / "adapter"), "--model", str(pruned)]
    assert main(["remap-lora", *arguments, "--output", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "kept 1 of 3 adapted modules" in out
    assert "dropped: blocks.0.attn.qkv, blocks.5.attn.qkv" in out
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["blocks.2.attn.qkv"]
    assert config["layers_to_transform"] is None
    assert list(load_file(tmp_path / "new" / "adapter_model.safetensors")) == [
        "base_model.model.blocks.2.attn.qkv.lora_A.weight",
        "base_model.model.blocks.2.attn.qkv.lora_B.weight",
    ]


@torch.no_grad()
def test_adapters_of_diffusers_models(full, tmp_path, capsys):
    from diffusers import DiTTransformer2DModel

    whole = DiTTransformer2DModel.from_pretrained(
        save_diffusers(full, tmp_path / "whole"), subfolder="transformer"
    )
    options = {"target_modules": ["to_q", "to_out.0", "ff.net.2", "proj_out_2"]}
    reference = adapted(whole, tmp_path / "adapter", **options)
    export = save_diffusers(prune(full, KEPT), tmp_path / "export", decision())
    result = remap_lora(tmp_path / "adapter", export, tmp_path / "new")
    assert result.dropped_blocks == [0, 3, 5, 6, 7, 8, 9, 10]
    arguments = [str(tmp_path / "adapter"), "--model", str(export), "--output", str(tmp_path / "b")]
    assert main(["remap-lora", *arguments]) == 0
    assert "load: peft.PeftModel.from_pretrained(pipeline.transformer, " in capsys.readouterr().out

    net = DiTTransformer2DModel.from_pretrained(export, subfolder="transformer")
    found = PeftModel.from_pretrained(net, result.folder).eval()
    inner = reference.base_model.model
    inner.transformer_blocks = torch.nn.ModuleList([inner.transformer_blocks[i] for i in KEPT])
    x, t, y = INPUTS
    expected = reference(x, timestep=t, class_labels=y).sample
    assert torch.equal(found(x, timestep=t, class_labels=y).sample, expected)


def test_copies_of_the_embedders_are_not_carried_over(full, tmp_path):
    from diffusers import DiTTransformer2DModel

    whole = DiTTransformer2DModel.from_pretrained(
        save_diffusers(full, tmp_path / "whole"), subfolder="transformer"
    )
    adapted(whole, tmp_path / "adapter", target_modules=["linear_1"])
    export = save_diffusers(prune(full, KEPT), tmp_path / "export")
    with pytest.raises(InputError, match=r"adapts transformer_blocks.0.norm1.emb.*copies"):
        remap_lora(tmp_path / "adapter", export, tmp_path / "new")


@pytest.fixture
def adapter(full, tmp_path):
    adapted(full, tmp_path / "adapter", target_modules=["qkv"])
    return tmp_path / "adapter"


def test_public_export_of_a_pruned_model_is_enough(full, adapter, tmp_path):
    file = save_public(prune(full, KEPT), tmp_path / "pruned.pt")
    assert len(remap_lora(adapter, file, tmp_path / "new").renamed) == len(KEPT)


def test_model_that_was_not_pruned_is_refused(full, adapter, tmp_path):
    whole = save_model(full, tmp_path / "whole")
    with pytest.raises(InputError, match="records no kept blocks, so it was not pruned"):
        remap_lora(adapter, whole, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_adapter_of_a_deeper_model_is_refused(pruned, tmp_path):
    adapted(tiny_dit(depth=14), tmp_path / "adapter", target_modules=["qkv"])
    with pytest.raises(InputError, match=r"adapts block 13, but .* has blocks 0\.\.11"):
        remap_lora(tmp_path / "adapter", pruned, tmp_path / "new")


def test_adapter_of_another_width_is_refused(pruned, tmp_path):
    adapted(tiny_dit(width=32), tmp_path / "adapter", target_modules=["qkv"])
    with pytest.raises(InputError, match=r"shape \(8, 32\), but blocks.0.attn.qkv of .* another w"):
        remap_lora(tmp_path / "adapter", pruned, tmp_path / "new")


def test_adapter_of_removed_blocks_only_is_refused(full, pruned, tmp_path):
    adapted(
        full,
        tmp_path / "adapter",
        target_modules=["qkv"],
        layers_to_transform=[0, 3],
        layers_pattern="blocks",
    )
    with pytest.raises(InputError, match="adapts removed blocks only"):
        remap_lora(tmp_path / "adapter", pruned, tmp_path / "new")


def test_adapter_of_another_architecture_is_refused(pruned, tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    adapted(net, tmp_path / "adapter", target_modules=["0"])
    with pytest.raises(InputError, match=r"adapts 0, which .* does not have"):
        remap_lora(tmp_path / "adapter", pruned, tmp_path / "new")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; valid: 'LORA'"),
        ({"layer_replication": [[0, 4]]}, r"layer_replication=.* can't be remapped"),
        ({"target_parameters": ["pos_embed"]}, r"target_parameters=.* can't be remapped"),
    ],
)
def test_other_kinds_of_adapters_are_refused(changes, message, pruned, adapter, tmp_path):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        remap_lora(adapter, pruned, tmp_path / "new")


def test_damaged_adapters_are_refused(pruned, adapter, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        remap_lora(tmp_path / "nothing", pruned, tmp_path / "new")
    weights = adapter / "adapter_model.safetensors"
    state = load_file(weights)
    save_file({name.removeprefix("base_model."): t for name, t in state.items()}, weights)
    with pytest.raises(InputError, match=r"is not named base_model.model\.\.\."):
        remap_lora(adapter, pruned, tmp_path / "new")
    weights.unlink()
    with pytest.raises(InputError, match="saved by peft as safetensors"):
        remap_lora(adapter, pruned, tmp_path / "new")
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter config file .* does not exist"):
        remap_lora(adapter, pruned, tmp_path / "new")


def test_adapter_that_may_be_of_the_pruned_model_is_pointed_out(pruned, tmp_path, caplog):
    adapted(load(pruned), tmp_path / "adapter", target_modules=["qkv"])
    remap_lora(tmp_path / "adapter", pruned, tmp_path / "new")
    assert "adapts exactly blocks 0..3, as many as the pruned model has" in caplog.text


def test_output_is_replaced_only_when_asked(pruned, adapter, tmp_path):
    new = tmp_path / "new"
    remap_lora(adapter, pruned, new)
    with pytest.raises(InputError, match="exists; give another name, or --overwrite"):
        remap_lora(adapter, pruned, new)
    remap_lora(adapter, pruned, new, overwrite=True)
    with pytest.raises(InputError, match="is the adapter itself"):
        remap_lora(adapter, pruned, adapter, overwrite=True)
    with pytest.raises(InputError, match="holds no adapter"):
        remap_lora(adapter, pruned, pruned, overwrite=True)


def test_output_that_cannot_be_written_is_one_line(pruned, adapter, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = [str(adapter), "--model", str(pruned), "--output", str(tmp_path / "file" / "new")]
    assert main(["remap-lora", *arguments]) == 2
    assert "file/new could not be written: " in capsys.readouterr().err


def test_wrong_arguments_are_one_line(capsys):
    assert main(["remap-lora", "somewhere"]) == 2
    assert "required: --model, --output" in capsys.readouterr().err
