"""The tools on MAR, whose blocks are in two lists."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.dit import DiTBlock
from tinyfusion.backbones.mar import MAR
from tinyfusion.checkpoints import load, remap_lora, save_model
from tinyfusion.cli import main
from tinyfusion.errors import InputError
from tinyfusion.surgery import prune

KEPT = [1, 4, 5, 11]  # encoder block 1, decoder blocks 0, 1 and 7


def tiny_mar(**changes):
    arguments = {
        "input_size": 4,
        "hidden_size": 16,
        "encoder_depth": 4,
        "decoder_depth": 8,
        "num_heads": 2,
        "in_channels": 3,
        "num_classes": 5,
        "buffer_size": 2,
        "head_depth": 2,
        "head_width": 24,
    }
    net = MAR(**arguments | changes).eval()
    draws = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=draws)
    return net


def adapted(net, folder, **options):
    """A peft model with random adapters, saved to ``folder``."""
    model = get_peft_model(copy.deepcopy(net), LoraConfig(**options))
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.2)
    model.save_pretrained(folder)
    return model.eval()


def decision(kept=KEPT, source_depth=12):
    return {"decision": {"kept": list(kept), "source_depth": source_depth}}


@pytest.fixture
def full():
    return tiny_mar()


@pytest.fixture
def pruned(full, tmp_path):
    return save_model(prune(full, KEPT), tmp_path / "pruned", decision())


@pytest.fixture
def shown(capsys):
    """Run ``inspect``; its rows by name."""

    def run(path):
        assert main(["inspect", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        rows = (line.strip().partition("  ") for line in lines)
        return {name: value.strip() for name, _, value in rows}

    return run


def test_inspect_bare_file(full, tmp_path, shown):
    torch.save(tiny_mar(encoder_depth=16, decoder_depth=16).state_dict(), tmp_path / "mar.pth")
    rows = shown(tmp_path / "mar.pth")
    expected = {
        "architecture": "MAR",
        "format": "bare state dict (PyTorch)",
        "depth": "32 blocks",
        "stacks": "encoder_depth 16, decoder_depth 16",
        "heads": "not in the file: give num_heads= to load it",
        "patch size": "1 (assumed: not in the file)",
        "input": "3 x 4 x 4",
        "classes": "5 and the null class",
        "further": "buffer_size 2, head_depth 2, head_width 24",
    }
    assert rows.items() >= expected.items()
    assert "convention" not in rows and "note" not in rows


def test_inspect_pruned_folder(pruned, shown):
    rows = shown(pruned)
    assert rows["stacks"] == "encoder_depth 1, decoder_depth 3" and rows["patch size"] == "1"
    assert rows["kept blocks"].startswith("1, 4, 5, 11 (numbers in the model it was pruned from, ")
    assert rows["heads"] == "2"


def test_convert_between_ours_and_public_is_bit_identical(pruned, tmp_path, capsys):
    for source, target, to in (("pruned", "a.pth", "public"), ("a.pth", "last", "ours")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), "--to", to]) == 0
        out = capsys.readouterr().out
        assert "4 blocks, kept from 1, 4, 5, 11" in out and "convention" not in out
    first, last = load(pruned), load(tmp_path / "last")
    assert last.config() == first.config() and last.kept_from == tuple(KEPT)
    assert last.source_borders == (4,)
    state = last.state_dict()
    assert all(torch.equal(state[name], t) for name, t in first.state_dict().items())
    names = [name for name in torch.load(tmp_path / "a.pth") if name.endswith("attn.qkv.bias")]
    assert names == ["encoder_blocks.0.attn.qkv.bias"] + [
        f"decoder_blocks.{i}.attn.qkv.bias" for i in range(3)
    ]


def test_convert_to_diffusers_is_refused_before_anything_is_fetched(pruned, tmp_path, capsys):
    arguments = [str(pruned), str(tmp_path / "x"), "--to", "diffusers", "--vae", "nobody/nothing"]
    assert main(["convert", *arguments]) == 2
    err = capsys.readouterr().err
    assert "a MAR can't be exported to diffusers, whose DiTPipeline computes only DiT" in err
    assert err.count("\n") == 1 and not (tmp_path / "x").exists()


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["qkv", "fc1"]},
        {"target_modules": r"decoder_blocks\.(0|3|7)\.mlp\.fc2|encoder_blocks\.[01]\.attn\.proj"},
        {"target_modules": "all-linear"},
        {
            "target_modules": ["qkv", "z_proj"],
            "r": 4,
            "rank_pattern": {"encoder_blocks.1.attn.qkv": 3, r"decoder_blocks\.7\.attn\.qkv": 2},
        },
    ],
)
def test_adapter_computes_on_the_pruned_model_what_it_did_there(full, pruned, tmp_path, options):
    reference = adapted(full, tmp_path / "adapter", **options)
    result = remap_lora(tmp_path / "adapter", pruned, tmp_path / "new")
    assert all(result.dropped_blocks[i] not in KEPT for i in range(len(result.dropped_blocks)))
    found = PeftModel.from_pretrained(load(pruned), result.folder).eval()
    inner = reference.base_model.model
    inner.keep_blocks(KEPT)
    draws = torch.Generator().manual_seed(7)
    inputs = [
        torch.randn(part.shape, generator=draws) if part.is_floating_point() else part
        for part in full.example_inputs(2)
    ]
    # Where the tensors lie in memory may decide which kernel multiplies them.
    torch.testing.assert_close(found(*inputs), reference(*inputs))
    assert not torch.equal(found(*inputs), load(pruned)(*inputs))


def test_remapped_names_and_the_report(full, pruned, tmp_path, capsys, shown):
    adapted(full, tmp_path / "a", target_modules=r"(encoder|decoder)_blocks\.1\.attn\.qkv|.*mlp\.0")
    rows = shown(tmp_path / "a")
    assert (rows["encoder_blocks"], rows["decoder_blocks"]) == ("1", "1")
    assert rows["diffloss.net.res_blocks"] == "0, 1"
    arguments = [str(tmp_path / "a"), "--model", str(pruned), "--output", str(tmp_path / "b")]
    assert main(["remap-lora", *arguments]) == 0
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["target_modules"] == [
        "decoder_blocks.1.attn.qkv",
        *(f"diffloss.net.res_blocks.{i}.mlp.0" for i in range(2)),
        "diffloss.net.time_embed.mlp.0",
        "encoder_blocks.0.attn.qkv",
    ]
    adapted(full, tmp_path / "c", target_modules=r".*_blocks\.[02]\.attn\.qkv")
    capsys.readouterr()
    arguments[0], arguments[-1] = str(tmp_path / "c"), str(tmp_path / "d")
    assert main(["remap-lora", *arguments]) == 0
    out = capsys.readouterr().out
    assert "kept 1 of 4 adapted modules\ntheir blocks are gone: 0, 2, 6\n" in out
    assert "dropped: encoder_blocks.0.attn.qkv, encoder_blocks.2.attn.qkv, decoder_blocks.2" in out


def test_adapter_of_a_whole_stack_that_is_gone(full, tmp_path):
    model = save_model(prune(full, [4, 6]), tmp_path / "m", decision([4, 6]))
    adapted(full, tmp_path / "a", target_modules=r".*_blocks\.2\.attn\.qkv")
    result = remap_lora(tmp_path / "a", model, tmp_path / "b")
    assert result.renamed == {"decoder_blocks.2.attn.qkv": "decoder_blocks.1.attn.qkv"}
    assert result.dropped_blocks == [2]


@pytest.mark.parametrize("changes", [{"encoder_depth": 5}, {"decoder_depth": 9}])
def test_adapter_of_a_deeper_model_is_refused(pruned, tmp_path, changes):
    adapted(tiny_mar(**changes), tmp_path / "adapter", target_modules=["qkv"])
    with pytest.raises(InputError, match=r"adapts block [48], but .* has blocks 0\.\.[37] there"):
        remap_lora(tmp_path / "adapter", pruned, tmp_path / "new")


def test_adapter_that_may_be_of_the_pruned_model_is_pointed_out(pruned, tmp_path, caplog):
    adapted(load(pruned), tmp_path / "adapter", target_modules=["qkv"])
    remap_lora(tmp_path / "adapter", pruned, tmp_path / "new")
    assert "adapts exactly encoder_blocks 0..0, decoder_blocks 0..2, as many as" in caplog.text


def test_record_without_borders_is_refused(full, pruned, tmp_path):
    adapted(full, tmp_path / "adapter", target_modules=["qkv"])
    path = pruned / "config.json"
    config = json.loads(path.read_text())
    del config["source_borders"]
    path.write_text(json.dumps(config))
    message = "the MAR has the stacks encoder_blocks, decoder_blocks, but its record does not say"
    with pytest.raises(InputError, match=message) as caught:
        remap_lora(tmp_path / "adapter", pruned, tmp_path / "new")
    assert str(caught.value).startswith(f"{pruned}: ")


class Layered(Backbone):
    """A backbone of somebody's own whose blocks are in a list of another name."""

    in_channels, input_size, num_classes = 1, 2, 3

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.body = torch.nn.ModuleDict(
            {"layers": torch.nn.ModuleList(DiTBlock(8, 2, 1.0) for _ in range(depth))}
        )

    @property
    def blocks(self):
        return self.body["layers"]

    def keep_blocks(self, kept):
        self.body["layers"] = torch.nn.ModuleList([self.blocks[i] for i in kept])

    def config(self):
        return {"depth": self.depth}

    def forward(self, x, t, y, run_block=None):
        raise NotImplementedError


def test_list_of_blocks_of_any_name(tmp_path):
    net = Layered()
    assert net.stack_names == ("body.layers",)
    model = save_model(prune(net, [0, 3]), tmp_path / "m", decision([0, 3], 4))
    adapted(net, tmp_path / "a", target_modules=["qkv"])
    result = remap_lora(tmp_path / "a", model, tmp_path / "b")
    assert result.renamed == {
        "body.layers.0.attn.qkv": "body.layers.0.attn.qkv",
        "body.layers.3.attn.qkv": "body.layers.1.attn.qkv",
    }
    assert result.dropped_blocks == [1, 2]
