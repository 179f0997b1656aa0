"""Model folders: what is written, read back, and refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.presets import family_of
from tinyfusion.checkpoints import load, read_checkpoint, save_model
from tinyfusion.errors import InputError
from tinyfusion.files import sha256_of
from tinyfusion.version import __version__


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip_is_bit_identical(net, batch, tmp_path):
    assert save_model(net, tmp_path / "new" / "model") == tmp_path / "new" / "model"
    loaded = load(tmp_path / "new" / "model")
    assert not loaded.training
    assert loaded.config() == net.config()
    assert loaded.kept_from is None
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(loaded(*batch), net(*batch))


def test_loaded_parameters_train_as_before(net, batch, tmp_path):
    loaded = load(save_model(net, tmp_path))
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in net.named_parameters() if p.requires_grad}
    loaded(*batch).square().mean().backward()
    torch.optim.SGD([p for p in loaded.parameters() if p.requires_grad], lr=0.1).step()
    # The module owns its memory: training must not reach the file.
    assert torch.equal(load(tmp_path).final_layer.linear.weight, net.final_layer.linear.weight)


def test_config_says_what_the_file_is(net, tmp_path):
    save_model(net, tmp_path, provenance={"command": "pretrain", "seed": 0})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {
        "format": "tinyfusion-model",
        "format_version": 1,
        "tinyfusion_version": __version__,
        "backbone": "dit",
        "arguments": net.config(),
        "depth": 4,
        "kept_from": None,
        "num_parameters": sum(p.numel() for p in net.parameters()),
        "weights": {
            "file": "model.safetensors",
            "sha256": sha256_of(tmp_path / "model.safetensors"),
        },
        "provenance": {"command": "pretrain", "seed": 0},
    }
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.provenance == {"command": "pretrain", "seed": 0}
    assert checkpoint.sha256 == sha256_of(tmp_path / "model.safetensors")
    assert (checkpoint.backbone, checkpoint.arguments) == ("dit", net.config())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_half_stores_float16_and_loads_float32(net, tmp_path):
    save_model(net, tmp_path, half=True)
    stored = load_file(tmp_path / "model.safetensors")
    assert {n for n, t in stored.items() if t.dtype != torch.float16} == {"pos_embed"}
    loaded = load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.pos_embed, net.pos_embed)
    for name, tensor in net.state_dict().items():
        if name != "pos_embed":
            assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name


class OtherTable(DiT):
    """A fixed table under a name of its own."""

    fixed_tables = ("pos_embed", "grid")

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.grid = torch.nn.Parameter(torch.linspace(0, 1, 7), requires_grad=False)


def test_a_backbone_says_which_tables_are_fixed(tmp_path):
    net = OtherTable(input_size=4, hidden_size=8, depth=2, num_heads=2, num_classes=3)
    save_model(net, tmp_path, half=True)
    stored = load_file(tmp_path / "model.safetensors")
    assert {n for n, t in stored.items() if t.dtype != torch.float16} == {"pos_embed", "grid"}
    torch.save({n: t.half() for n, t in net.state_dict().items()}, tmp_path / "net.pt")
    found = load(tmp_path / "net.pt", {"backbone": family_of(net), **net.config()})
    assert torch.equal(found.grid, net.grid) and not torch.equal(net.grid, net.grid.half().float())


def test_half_refuses_what_float16_cannot_hold(net, tmp_path):
    net.blocks[2].mlp.fc1.weight.data[0, 0] = 1e6
    with pytest.raises(InputError, match=r"'blocks.2.mlp.fc1.weight' is not finite in float16"):
        save_model(net, tmp_path / "model", half=True)
    assert not (tmp_path / "model").exists()


def test_pruned_model_keeps_depth_and_origin(net, batch, tmp_path):
    net.keep_blocks([0, 3])
    net.kept_from = (0, 3)
    loaded = load(save_model(net, tmp_path))
    assert (loaded.depth, loaded.kept_from) == (2, (0, 3))
    assert read_checkpoint(tmp_path).kept_from == (0, 3)
    with torch.no_grad():
        assert torch.equal(loaded(*batch), net(*batch))
    # Saving what was loaded does not lose it.
    assert load(save_model(loaded, tmp_path / "again")).kept_from == (0, 3)


def test_conventions_survive(net, tmp_path):
    net.frequency_divisor = net.t_embedder.frequency_divisor = 127.0
    assert load(save_model(net, tmp_path)).t_embedder.frequency_divisor == 127.0


def test_weight_file_inside_the_folder_uses_the_config_beside_it(net, tmp_path):
    net.kept_from = (1, 2, 3, 4)
    save_model(net, tmp_path)
    loaded = load(tmp_path / "model.safetensors")
    assert (loaded.num_heads, loaded.kept_from) == (4, (1, 2, 3, 4))


def test_saving_over_another_model_replaces_it(net, tmp_path):
    save_model(net, tmp_path)
    net.keep_blocks([1])
    assert load(save_model(net, tmp_path)).depth == 1


def test_a_crash_between_the_two_files_never_loads_wrongly(net, tmp_path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    fresh, old = tmp_path / "fresh", save_model(net, tmp_path / "old")
    net.final_layer.linear.bias.data += 1
    monkeypatch.setattr("tinyfusion.checkpoints.write.write_json", crash)
    for folder in (fresh, old):
        with pytest.raises(KeyboardInterrupt):
            save_model(net, folder)
    with pytest.raises(InputError, match=r"not a model folder, it holds model.safetensors; valid"):
        load(fresh)
    with pytest.raises(InputError, match=r"old/model.safetensors: SHA-256 is .* but .*config.json"):
        load(old)


def test_provenance_that_json_cannot_hold_touches_no_file(net, tmp_path):
    with pytest.raises(TypeError):
        save_model(net, tmp_path / "model", provenance={"net": net})
    assert not (tmp_path / "model").exists()


def test_changed_weights_are_refused(net, tmp_path):
    path = save_model(net, tmp_path) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for given in (tmp_path, path):
        with pytest.raises(InputError, match=r"model.safetensors: SHA-256 .* incomplete or was"):
            load(given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, 'not the config of a model folder, .* "tinyfusion-model"'),
        ({"format_version": 2}, "format_version 2 can't be read .* valid: 1"),
        ({"weights": "model.safetensors"}, "key 'weights' must hold a file name and its sha256"),
        ({"weights": {"file": "../x", "sha256": "0"}}, "key 'weights' must hold a file name"),
        ({"weights": {"file": "no.safetensors", "sha256": "0"}}, "no.safetensors: does not exist"),
        ({"arguments": None}, "key 'arguments' is missing or wrong: None"),
        ({"backbone": None}, "key 'backbone' is missing or wrong: None"),
        ({"backbone": ""}, "key 'backbone' is missing or wrong: ''"),
        ({"backbone": "unet"}, "backbone 'unet' is unknown; valid families: dit"),
        ({"arguments": {"hidden": 48, "num_heads": 4}}, "has no argument 'hidden'"),
        ({"arguments": {"hidden_size": "48"}}, "give num_heads="),
        ({"kept_from": [0, 1]}, "kept_from must list one increasing index per block"),
        ({"kept_from": [0, 2, 1, 3]}, "kept_from must list one increasing index per block"),
    ],
)
def test_wrong_config_is_refused(net, tmp_path, changes, message):
    save_model(net, tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_config_that_contradicts_the_weights_is_refused(net, tmp_path):
    save_model(net, tmp_path)
    edit_config(tmp_path, arguments=net.config() | {"num_classes": 7})
    with pytest.raises(InputError, match=r"embedding_table.weight: \(6, 48\) in the file, \(8, 48"):
        load(tmp_path)


def test_broken_json_is_refused(net, tmp_path):
    save_model(net, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        load(tmp_path)


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a model folder, it holds nothing; valid: config"):
        load(tmp_path)
