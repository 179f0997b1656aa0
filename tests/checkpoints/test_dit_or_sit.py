"""A bare file does not say whether it is a DiT or a SiT: who decides, and that it is said."""

import json

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.presets import build_empty
from tinyfusion.backbones.sit import SiT
from tinyfusion.checkpoints import load, read_checkpoint, save_model
from tinyfusion.checkpoints.layout import SIDECAR_SUFFIX
from tinyfusion.errors import InputError
from tinyfusion.files import sha256_of

LINE = "read as DiT; SiT files look the same: give backbone=sit for one"


@pytest.fixture
def bare(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_a_bare_file_is_read_as_dit_and_it_is_said_once(bare, caplog):
    assert type(load(bare, num_heads=4)) is type(load(bare, num_heads=4)) is DiT
    assert [record.getMessage() for record in caplog.records] == [f"{bare}: {LINE}"]


@pytest.mark.parametrize("said", ["sit", {"backbone": "sit"}, {"backbone": "sit", "depth": 4}])
def test_backbone_says_that_it_is_a_sit(net, batch, bare, said, caplog):
    loaded = load(bare, backbone=said, num_heads=4)
    assert type(loaded) is SiT and not caplog.records
    x, t, y = batch
    with torch.no_grad():
        assert torch.equal(loaded(x, t, y), net(x, t, y)[:, :2])


def test_saying_dit_needs_no_remark(bare, caplog):
    assert type(load(bare, backbone="dit", num_heads=4)) is DiT and not caplog.records


def test_preset_of_sit(tmp_path):
    names = build_empty("sit_s_8").state_dict()
    state = {name: torch.zeros(tensor.shape, dtype=torch.half) for name, tensor in names.items()}
    torch.save(state, tmp_path / "a")
    assert type(load(tmp_path / "a", backbone="sit_s_8")) is SiT
    with pytest.raises(InputError, match=r"does not fit backbone='sit_s_4': pos_embed: \(1, 16, "):
        load(tmp_path / "a", backbone="sit_s_4")


def test_folder_of_a_sit_is_a_sit(net, tmp_path, caplog):
    sit = SiT(**net.config())
    assert type(load(save_model(sit, tmp_path))) is SiT and not caplog.records
    with pytest.raises(InputError, match="is a 'sit', but backbone='dit' was given"):
        load(tmp_path, backbone="dit")


@pytest.fixture
def exported(net, bare):
    """A bare file with the record that an export of ours puts beside it."""
    record = {
        "format": "tinyfusion-export",
        "backbone": "sit",
        "arguments": net.config() | {"frequency_divisor": 127.0, "mlp_norm_eps": 1e-5},
        "kept_from": [1, 2, 5, 7],
        "provenance": {"method": "learned"},
        "sha256": sha256_of(bare),
    }
    bare.with_name(bare.name + SIDECAR_SUFFIX).write_text(json.dumps(record))
    return bare


def test_record_beside_a_file_says_what_its_layout_cannot(exported, caplog):
    net = load(exported)  # not even the number of heads has to be given
    assert type(net) is SiT and not caplog.records
    assert (net.num_heads, net.frequency_divisor, net.mlp_norm_eps) == (4, 127.0, 1e-5)
    assert net.kept_from == (1, 2, 5, 7)
    checkpoint = read_checkpoint(exported)
    assert checkpoint.provenance == {"method": "learned"}
    assert checkpoint.layout == "bare state dict (PyTorch), exported by tinyfusion"


def test_record_of_other_weights_is_refused(net, exported):
    torch.save({name: tensor + 1 for name, tensor in net.state_dict().items()}, exported)
    with pytest.raises(InputError, match=r"net.pt: SHA-256 is .*, but .*net.pt.tinyfusion.json re"):
        load(exported)
