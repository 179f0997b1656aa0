"""Round trips through every layout, cards, and what is left after a failure."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import yaml

from tinyfusion.backbones.presets import build
from tinyfusion.checkpoints import load, read_checkpoint, save_diffusers, save_model, save_public
from tinyfusion.checkpoints.export import save_ours
from tinyfusion.errors import InputError
from tinyfusion.surgery import prune

PROVENANCE = {
    "pruned_from": "digits",
    "source_sha256": "ab" * 32,
    "decision": {
        "method": "learned",
        "scheme": [[1, 2], [2, 2]],
        "kept": [0, 2, 3],
        "source_depth": 4,
    },
    "metrics": {"fid": 12.345, "parameters": 1234567},
    "source_metrics": {"fid": 3.0},
    "protocol": {"num_samples": 50, "sampler": "DDIMSampler", "reference": None},
}


@pytest.fixture
def pruned(net):
    return prune(net, [0, 2, 3])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt(*_, **__):
    raise KeyboardInterrupt


SAVE = {
    "ours": lambda net, folder, **options: save_ours(net, folder / "ours", **options),
    "pt": lambda net, folder, **options: save_public(net, folder / "net.pt", **options),
    "safetensors": lambda net, folder, **options: save_public(
        net, folder / "net.safetensors", **options
    ),
    "diffusers": lambda net, folder, **options: save_diffusers(net, folder / "export", **options),
}


@pytest.mark.parametrize("layout", SAVE)
@pytest.mark.parametrize("convention", [(128.0, 1e-6), (127.0, 1e-5), (100.0, 2e-6)])
def test_round_trip_loses_nothing(layout, convention, pruned, tmp_path):
    arguments = pruned.config() | {"class_dropout_prob": 0.25}
    arguments |= dict(zip(("frequency_divisor", "mlp_norm_eps"), convention, strict=True))
    net = build(arguments).eval()
    net.load_state_dict(pruned.state_dict())
    net.kept_from = pruned.kept_from

    path = SAVE[layout](net, tmp_path, provenance=PROVENANCE)
    found = load(path)
    assert same(found.state_dict(), net.state_dict())
    assert found.config() == net.config()
    assert found.kept_from == (0, 2, 3)
    assert read_checkpoint(path).provenance == PROVENANCE


@pytest.mark.parametrize("layout", ["pt", "safetensors", "diffusers"])
def test_ours_there_and_back(layout, pruned, tmp_path):
    first = save_model(pruned, tmp_path / "first", PROVENANCE)
    between = SAVE[layout](load(first), tmp_path, provenance=PROVENANCE)
    last = save_model(load(between), tmp_path / "last", read_checkpoint(between).provenance)
    for name in ("model.safetensors", "config.json"):
        assert (first / name).read_bytes() == (last / name).read_bytes()


@pytest.mark.parametrize("layout", ["ours", "pt", "safetensors"])
def test_sit_round_trip(layout, tmp_path):
    net = build({"backbone": "sit", "input_size": 4, "hidden_size": 8, "depth": 1, "num_heads": 2})
    found = load(SAVE[layout](net, tmp_path))
    assert type(found) is type(net)
    assert found.config() == net.config()


def test_bare_state_dict_is_what_the_public_code_reads(pruned, tmp_path):
    path = save_public(pruned, tmp_path / "net.pt", half=True)
    state = torch.load(path, weights_only=True)
    assert list(state) == list(pruned.state_dict())
    assert {name for name, t in state.items() if t.dtype != torch.float16} == {"pos_embed"}
    assert sorted({int(n.split(".")[1]) for n in state if n.startswith("blocks.")}) == [0, 1, 2]


def test_without_its_record_a_public_file_is_still_a_state_dict(pruned, tmp_path):
    path = save_public(pruned, tmp_path / "net.pt")
    (tmp_path / "net.pt.tinyfusion.json").unlink()
    found = load(path, num_heads=4)
    assert found.kept_from is None
    assert same(found.state_dict(), pruned.state_dict())


def test_record_of_other_weights_is_refused(net, pruned, tmp_path):
    save_public(net, tmp_path / "a.pt")
    save_public(pruned, tmp_path / "b.pt")
    (tmp_path / "b.pt").replace(tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a.pt: SHA-256 is .* records"):
        load(tmp_path / "a.pt")


def test_half_export_to_diffusers(net, batch, tmp_path):
    found = load(save_diffusers(net, tmp_path / "x", half=True))
    for name, tensor in net.state_dict().items():
        expected = tensor if name == "pos_embed" else tensor.half().float()
        assert torch.equal(found.state_dict()[name], expected), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_position_table_of_a_half_precision_file_is_the_exact_one(net, tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in net.state_dict().items()}
    torch.save(state, tmp_path / "half.pt")
    found = load(tmp_path / "half.pt", num_heads=4)
    assert torch.equal(found.pos_embed, net.pos_embed)
    assert torch.equal(found.x_embedder.proj.bias, state["x_embedder.proj.bias"].float())
    # So the library, which computes the table, computes the same function.
    assert same(load(save_diffusers(found, tmp_path / "x")).state_dict(), found.state_dict())
    state["pos_embed"] = state["pos_embed"] * 1.1  # another table stays what it is
    torch.save(state, tmp_path / "other.pt")
    other = load(tmp_path / "other.pt", num_heads=4)
    assert torch.equal(other.pos_embed, state["pos_embed"].float())


def test_large_exports_are_sharded_as_diffusers_does(net, tmp_path):
    from diffusers import DiTTransformer2DModel

    folder = save_diffusers(net, tmp_path / "x", shard_size="200KB") / "transformer"
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert (folder / "diffusion_pytorch_model.safetensors.index.json").is_file()
    theirs = DiTTransformer2DModel.from_pretrained(folder)
    assert torch.equal(theirs.proj_out_2.weight, net.final_layer.linear.weight)
    assert same(load(folder).state_dict(), net.state_dict())


def test_diffusers_loads_it_without_a_warning(net, tmp_path):
    from diffusers import DiTPipeline
    from diffusers.utils import logging as theirs

    folder = save_diffusers(net, tmp_path / "x")
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = theirs.get_logger("diffusers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        DiTPipeline.from_pretrained(folder, vae=None)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert [record.getMessage() for record in records] == []


def test_files_get_the_mode_that_others_have(net, tmp_path):
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    for file in save_diffusers(net, tmp_path / "x").rglob("*"):
        assert file.is_dir() or file.stat().st_mode == expected, file


def test_interrupted_replacement_is_refused_and_not_read_wrongly(
    net, pruned, tmp_path, monkeypatch
):
    path = save_public(pruned, tmp_path / "net.pt")
    with monkeypatch.context() as patch:
        patch.setattr("tinyfusion.checkpoints.tensors.torch.save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_public(net, path, overwrite=True)
    assert load(path).kept_from == (0, 2, 3)  # still the former model, with its record
    with monkeypatch.context() as patch:
        patch.setattr("tinyfusion.checkpoints.export.write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_public(net, path, overwrite=True)
    with pytest.raises(InputError, match="belong to another record"):
        load(path)


@pytest.mark.parametrize("layout", SAVE)
def test_existing_target_is_replaced_only_when_asked(layout, net, pruned, tmp_path):
    path = SAVE[layout](net, tmp_path)
    with pytest.raises(InputError, match="exists; give another name, or --overwrite"):
        SAVE[layout](pruned, tmp_path)
    assert load(path).depth == 4
    SAVE[layout](pruned, tmp_path, overwrite=True)
    assert load(path).depth == 3
    # No left-overs of the replacement.
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("layout", ["ours", "diffusers"])
def test_folder_of_something_else_is_never_replaced(layout, net, tmp_path):
    folder = tmp_path / {"ours": "ours", "diffusers": "export"}[layout]
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds no model, so --overwrite does not replace it"):
        SAVE[layout](net, tmp_path, overwrite=True)
    assert (folder / "thesis.tex").exists()


def test_failure_leaves_the_former_export(net, pruned, tmp_path, monkeypatch):
    folder = save_diffusers(net, tmp_path / "x")

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("tinyfusion.checkpoints.export.model_card", fail)
    with pytest.raises(OSError, match="no space left"):
        save_diffusers(pruned, folder, overwrite=True)
    with pytest.raises(OSError, match="no space left"):
        save_diffusers(pruned, tmp_path / "y")
    assert load(folder).depth == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("net", "pt", r"valid suffixes: .pt, .pth, .safetensors"),
        ("net.pt", "ours", "the layout 'ours' is a folder"),
        ("net.safetensors", "diffusers", "the layout 'diffusers' is a folder"),
    ],
)
def test_names_that_do_not_suit_the_layout(name, layout, message, net, tmp_path):
    save = {"pt": save_public, "ours": save_ours, "diffusers": save_diffusers}[layout]
    with pytest.raises(InputError, match=message):
        save(net, tmp_path / name)


def test_unknown_scheduler(net, tmp_path):
    with pytest.raises(InputError, match="scheduler='euler' is unknown; valid: ddim, ddpm, dpm"):
        save_diffusers(net, tmp_path / "x", scheduler="euler")


def card_of(layout, path):
    file = path.with_name(f"{path.name}.md") if path.is_file() else path / "README.md"
    text = file.read_text()
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.parametrize("layout", SAVE)
def test_card_says_what_how_and_how_good(layout, pruned, tmp_path):
    path = SAVE[layout](pruned, tmp_path, provenance=PROVENANCE)
    front, text = card_of(layout, path)
    assert front["library_name"] == ("diffusers" if layout == "diffusers" else "tinyfusion")
    assert {"tinyfusion", "dit", "pruned"} <= set(front["tags"])
    assert "license" not in front
    for line in (
        "A DiT of 3 blocks and ",
        "- **Pruned from**: `digits`, 4 blocks",
        f"- **SHA-256 of its weights**: `{'ab' * 32}`",
        "- **Method**: learned",
        "- **Scheme**: 1:2, 2:2",
        "- **Kept blocks**: 0, 2, 3",
        "- **Dropped blocks**: 1",
        "- **Recovery**: none",
        "| FID | 12.35 | 3 |",
        "| parameters | 1,234,567 |  |",
        "Protocol: num_samples 50; sampler DDIMSampler.",
        "frequency divisor 128 and norm epsilon 1e-06",
        "arXiv:2412.01199",
    ):
        assert line in text, line


def test_card_of_weights_with_diffusers_convention_warns_users_of_the_public_code(net, tmp_path):
    net.frequency_divisor, net.mlp_norm_eps = 127.0, 1e-5
    _, text = card_of("pt", save_public(net, tmp_path / "net.pt"))
    assert "the public code computes with frequency divisor 128 and norm epsilon 1e-06" in text


def test_card_does_not_publish_where_files_were(net, tmp_path):
    provenance = {"pruned_from": "/home/someone/secret/runs/model", "source_sha256": "0"}
    _, text = card_of("ours", save_ours(prune(net, [0]), tmp_path / "ours", provenance))
    assert "secret" not in text and "`runs/model`" in text


def test_python_of_the_card_runs(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for layout in ("ours", "pt"):
        _, text = card_of(layout, SAVE[layout](net, tmp_path))
        names: dict = {}
        exec(text.split("```python\n")[1].split("```")[0], names)
        assert names["net"].depth == 4


def test_record_keeps_what_the_layout_cannot_say(pruned, tmp_path):
    folder = save_diffusers(pruned, tmp_path / "x", PROVENANCE)
    record = json.loads((folder / "transformer" / "tinyfusion.json").read_text())
    assert record["format"] == "tinyfusion-export"
    convention = {"frequency_divisor": 128.0, "mlp_norm_eps": 1e-6}
    assert record["arguments"] == pruned.config() and convention.items() <= pruned.config().items()
    assert record["kept_from"] == [0, 2, 3]
    assert record["sha256"] == read_checkpoint(folder).sha256
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["norm_eps"] == 1e-6
    assert config["_tinyfusion"] == {"convention": convention}
