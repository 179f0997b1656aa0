"""``tinyfusion convert`` from the command line."""

from __future__ import annotations

import json
import resource
import signal

import pytest
import torch
from safetensors.torch import save_file

from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import load, read_checkpoint, save_model
from tinyfusion.checkpoints.export import SCHEDULERS
from tinyfusion.cli import main
from tinyfusion.decision import Decision
from tinyfusion.files import sha256_of
from tinyfusion.surgery import prune


@pytest.fixture
def net():
    net = DiT(8, 2, 4, hidden_size=16, depth=4, num_heads=2, num_classes=5).eval()
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.fixture
def convert(capsys):
    def run(*arguments):
        status = main(["convert", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def vae(tmp_path):
    from diffusers import AutoencoderKL

    folder = tmp_path / "autoencoder"
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).save_pretrained(
        folder
    )
    return folder


def test_chain_through_all_layouts_is_bit_identical(net, convert, tmp_path):
    first = save_model(prune(net, [0, 3]), tmp_path / "first", {"seed": 3})
    for source, target, to in (
        ("first", "a.pt", "public"),
        ("a.pt", "b", "diffusers"),
        ("b", "c.safetensors", "public"),
        ("c.safetensors", "last", "ours"),
    ):
        status, out, err = convert(tmp_path / source, tmp_path / target, "--to", to)
        assert (status, err) == (0, "")
        assert "2 blocks, kept from 0, 3" in out
        assert "convention: These weights expect frequency divisor 128" in out
    last = tmp_path / "last"
    assert (first / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    a, b = (json.loads((folder / "config.json").read_text()) for folder in (first, last))
    origin = b["provenance"].pop("converted_from")
    assert a == b
    # The first file of the chain is remembered.
    assert origin["sha256"] == sha256_of(first / "model.safetensors")
    assert origin["layout"].startswith("model folder")
    assert origin["name"] == f"{tmp_path.name}/first"


def test_public_training_checkpoint_becomes_a_pipeline(net, vae, convert, tmp_path):
    from diffusers import DiTPipeline

    raw = {name: torch.zeros_like(t) for name, t in net.state_dict().items()}
    torch.save({"model": raw, "ema": net.state_dict(), "opt": {}}, tmp_path / "0400000.pt")
    status, out, err = convert(
        tmp_path / "0400000.pt", tmp_path / "x", "--to", "diffusers", "--vae", vae, "--num-heads", 2
    )
    assert status == 0, err
    assert "samples there without guidance only" in out
    assert "use_published_convention(pipeline)" in out
    assert "autoencoder:" not in out
    pipe = DiTPipeline.from_pretrained(tmp_path / "x")
    assert pipe.vae.config.latent_channels == 4
    assert torch.equal(pipe.transformer.proj_out_2.weight, net.final_layer.linear.weight)


def test_pipeline_folder_is_taken_for_its_autoencoder(net, vae, convert, tmp_path):
    save_model(net, tmp_path / "m")
    assert convert(tmp_path / "m", tmp_path / "x", "--to", "diffusers", "--vae", vae)[0] == 0
    again = ("--to", "diffusers", "--vae", tmp_path / "x")
    assert convert(tmp_path / "m", tmp_path / "y", *again)[0] == 0
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_stock_diffusers_model_keeps_its_convention(convert, tmp_path):
    from diffusers import DiTTransformer2DModel

    theirs = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=4, out_channels=8
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    status, out, _ = convert(tmp_path / "theirs", tmp_path / "ours", "--to", "ours")
    assert status == 0
    assert "frequency divisor 127 and norm epsilon 1e-05." in out
    net = load(tmp_path / "ours")
    x, t, y = torch.randn(2, 4, 4, 4), torch.tensor([3, 700]), torch.tensor([1, 1000])
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=y).sample
        torch.testing.assert_close(net(x, t, y), expected, rtol=1e-5, atol=1e-5)


def test_facts_of_the_run_are_picked_up(net, convert, tmp_path):
    run = tmp_path / "run"
    decision = Decision((1, 2), 4, method="shortgpt", scheme=[[2, 4]], source_sha256="c" * 64)
    decision.save(run / "decision.json")
    rows = {"recovered": {"fid": 7.25, "depth": 2}, "source": {"fid": 4.5, "depth": 4}}
    content = {"models": rows, "protocol": {"num_samples": 10}}
    (run / "metrics.json").write_text(json.dumps(content))
    (run / "config.yaml").write_text(
        "recovery: {_target_: x, task_weight: 0.1}\nteacher: {path: source}\n"
    )
    provenance = {"recovered_from": "digits", "source_sha256": "c" * 64, "steps": 1000}
    save_model(prune(net, decision), run / "recovered", provenance)
    assert convert(run / "recovered", tmp_path / "x", "--to", "diffusers")[0] == 0
    card = (tmp_path / "x" / "README.md").read_text()
    for line in (
        "- **Pruned from**: `digits`, 4 blocks",
        "- **Method**: shortgpt",
        "- **Dropped blocks**: 0, 3",
        "- **Recovery**: 1,000 steps",
        "- **Recovery objective**: task_weight 0.1",
        "| FID | 7.25 | 4.5 |",
        "Protocol: num_samples 10.",
    ):
        assert line in card, line
    # They travel with the weights from now on.
    record = read_checkpoint(tmp_path / "x").provenance
    assert record["decision"]["source_depth"] == 4
    assert record["metrics"] == rows["recovered"]


def test_damaged_or_foreign_notes_of_a_run_are_left_out(net, convert, tmp_path):
    run = tmp_path / "run"
    Decision((0, 1, 2), 4).save(run / "decision.json")  # another number of blocks
    (run / "metrics.json").write_text("{")
    save_model(prune(net, [1, 2]), run / "pruned", {"pruned_from": "digits"})
    assert convert(run / "pruned", tmp_path / "x", "--to", "ours")[0] == 0
    assert "decision" not in read_checkpoint(tmp_path / "x").provenance


def test_names_of_classes(net, convert, tmp_path):
    save_model(net, tmp_path / "m")
    arguments = (tmp_path / "m", tmp_path / "x", "--to", "diffusers", "--labels")
    status, _, err = convert(*arguments, "imagenet")
    assert status == 2 and "--labels imagenet: 1000 names, but the model has 5" in err
    names = tmp_path / "names.json"
    names.write_text("[1, 2]")
    assert "must hold a list of names" in convert(*arguments, names)[2]
    names.write_text(json.dumps({str(i): f"thing {i}" for i in range(5)}))
    assert convert(*arguments, names)[0] == 0
    index = json.loads((tmp_path / "x" / "model_index.json").read_text())
    assert index["id2label"]["4"] == "thing 4"


def test_imagenet_names_come_without_the_network(tmp_path):
    from tinyfusion.tools.conversion import _labels

    names = _labels("imagenet", DiT(4, hidden_size=8, depth=1, num_heads=2, num_classes=1000))
    assert (len(names), names[207]) == (1000, "golden retriever")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent", "x", "--to", "ours"), "checkpoint 'absent' does not exist"),
        (("m", "x"), "the following arguments are required: --to"),
        (("m", "x", "--to", "onnx"), "invalid choice: 'onnx'"),
        (("m", "x", "--to", "public"), "the public layout is one weights file"),
        (("m", "x.pt", "--to", "ours"), "is the name of a weights file"),
        (("m", "m", "--to", "ours", "--overwrite"), "DST=m and SRC=m overlap"),
        (("m", "m/x", "--to", "ours"), "overlap; give a place apart from SRC"),
        (("m", "x", "--to", "ours", "--vae", "v"), "--vae has no meaning with --to ours"),
        (("m", "x.pt", "--to", "public", "--scheduler", "dpm"), "--scheduler has no meaning"),
        (("m", "x", "--to", "diffusers", "--vae", "v"), "--vae 'v' does not exist"),
        (("m", "x", "--to", "diffusers", "--vae", "m"), "--vae 'm': config.json describes None"),
        (("m", "x", "--to", "diffusers", "--backbone", "sit"), "is a 'dit', but backbone='sit'"),
        (("sit", "x", "--to", "diffusers"), "a SiT can't be exported to diffusers"),
        (("one", "x", "--to", "diffusers", "--vae", "autoencoder"), "latents of 4 channels, but"),
        (("huge", "x", "--to", "ours", "--half"), "is not finite in float16"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, net, vae, convert, tmp_path, monkeypatch):
    from tinyfusion.backbones.sit import SiT

    monkeypatch.chdir(tmp_path)
    small = dict(input_size=4, hidden_size=8, depth=1, num_heads=2, num_classes=3)
    save_model(net, "m")
    save_model(SiT(**small), "sit")
    save_model(DiT(**small, in_channels=1), "one")
    net.blocks[0].mlp.fc1.weight.data[0, 0] = 1e6
    save_model(net, "huge")
    status, out, err = convert(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(
    ("name", "layout"),
    [("x", "ours"), ("x.pt", "public"), ("x.safetensors", "public"), ("x", "diffusers")],
)
def test_full_disk_is_one_line_and_leaves_nothing(name, layout, net, convert, tmp_path):
    save_model(net, tmp_path / "m")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:  # the kernel refuses more, as a full disk does
        status, _, err = convert(tmp_path / "m", tmp_path / name, "--to", layout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert status == 2 and err.count("\n") == 1
    assert "could not be written: " in err and "File too large" in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_help_offers_the_schedulers_there_are(convert):
    assert f"{{{','.join(SCHEDULERS)}}}" in convert("--help")[1]


def test_help_lists_the_layouts(convert):
    status, out, _ = convert("--help")
    assert status == 0
    for word in ("ours", "public", "diffusers", "--vae", "--scheduler", "SRC", "DST"):
        assert word in out


def test_bare_safetensors_of_unknown_width_needs_heads(net, convert, tmp_path):
    save_file(net.state_dict(), tmp_path / "bare.safetensors")
    status, _, err = convert(tmp_path / "bare.safetensors", tmp_path / "x", "--to", "ours")
    assert status == 2 and "give --num-heads" in err
