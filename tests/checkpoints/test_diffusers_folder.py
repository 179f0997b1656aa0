"""Diffusers folders, written by diffusers itself: one file, shards, variants, pipelines."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from tinyfusion.checkpoints import load, read_checkpoint, set_convention, weights_sha256
from tinyfusion.checkpoints.tensors import digest_of
from tinyfusion.errors import InputError
from tinyfusion.files import sha256_of

CONFIG = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "in_channels": 2,
    "out_channels": 4,
    "num_layers": 4,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 5,
}
STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def theirs() -> DiTTransformer2DModel:
    """A model whose blocks share one timestep MLP and label table, as every DiT's do."""
    torch.manual_seed(2)
    model = DiTTransformer2DModel(**CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    shared = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(shared)
    return model


def computes_the_same(net, theirs, batch):
    x, t, y = batch
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=y).sample
        torch.testing.assert_close(net(x, t, y), expected, rtol=1e-4, atol=1e-5)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folder_in_one_file(theirs, batch, tmp_path):
    theirs.save_pretrained(tmp_path)
    net = load(tmp_path)
    computes_the_same(net, theirs, batch)
    assert (net.num_heads, net.frequency_divisor, net.mlp_norm_eps) == (4, 127.0, 1e-5)
    checkpoint = read_checkpoint(tmp_path)
    file = tmp_path / f"{STEM}.safetensors"
    assert (checkpoint.backbone, checkpoint.layout) == ("dit", "diffusers folder")
    assert checkpoint.sha256 == weights_sha256(tmp_path) == sha256_of(file)
    # The files in the folder stand for it.
    for name in (file.name, "config.json"):
        computes_the_same(load(tmp_path / name), theirs, batch)


def test_sharded_folder(theirs, batch, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    shards = sorted(tmp_path.glob(f"{STEM}-*-of-*.safetensors"))
    assert len(shards) > 2
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.layout == f"diffusers folder, sharded in {len(shards)} files"
    assert checkpoint.files == tuple(shards) and checkpoint.path == tmp_path
    assert checkpoint.sha256 == weights_sha256(tmp_path) == digest_of(shards)
    assert checkpoint.sha256 not in map(sha256_of, shards)
    for name in ("", shards[1].name, f"{STEM}.safetensors.index.json"):
        computes_the_same(load(tmp_path / name), theirs, batch)


@pytest.mark.parametrize("size", ["10GB", "200KB"])
def test_pytorch_weights_as_in_the_published_repository(theirs, batch, tmp_path, size):
    theirs.save_pretrained(tmp_path, safe_serialization=False, max_shard_size=size)
    assert not list(tmp_path.glob("*.safetensors"))
    computes_the_same(load(tmp_path), theirs, batch)


def test_class_name_of_the_published_config(theirs, batch, tmp_path):
    theirs.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", _class_name="Transformer2DModel", norm_type="ada_norm_zero")
    computes_the_same(load(tmp_path), theirs, batch)
    edit(tmp_path / "config.json", norm_type="ada_norm_single")
    with pytest.raises(InputError, match="'norm_type' is 'ada_norm_single'"):
        load(tmp_path)


def test_half_precision_variant(theirs, batch, tmp_path):
    theirs.save_pretrained(tmp_path, variant="fp16")
    state = load_file(tmp_path / f"{STEM}.fp16.safetensors")
    halves = {name: tensor.half() for name, tensor in state.items()}
    save_file(halves, tmp_path / f"{STEM}.fp16.safetensors")
    assert read_checkpoint(tmp_path).dtypes == ("float16",)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}
    save_file(halves, tmp_path / f"{STEM}.other.safetensors")
    with pytest.raises(InputError, match=r"several variants; give the path of one of .*fp16"):
        load(tmp_path)
    assert load(tmp_path / f"{STEM}.fp16.safetensors").depth == 4


def test_shards_of_a_variant(theirs, batch, tmp_path):
    theirs.save_pretrained(tmp_path, variant="fp16", max_shard_size="200KB")
    assert (tmp_path / f"{STEM}.safetensors.index.fp16.json").is_file()
    computes_the_same(load(tmp_path), theirs, batch)


@pytest.fixture
def pipeline(theirs, tmp_path):
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, latent_channels=2
    )
    DiTPipeline(theirs, vae, DDIMScheduler()).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_pipeline_folder(pipeline, theirs, batch):
    for name in ("", "model_index.json", "transformer"):
        computes_the_same(load(pipeline / name), theirs, batch)
    weights = pipeline / "transformer" / f"{STEM}.safetensors"
    assert read_checkpoint(pipeline).path == weights
    assert weights_sha256(pipeline) == sha256_of(weights)


def test_pipelines_without_a_dit_are_refused(pipeline):
    edit(pipeline / "model_index.json", transformer=["diffusers", "SD3Transformer2DModel"])
    with pytest.raises(InputError, match=r"DiTPipeline with 'transformer': .*SD3Transformer2DMod"):
        load(pipeline)
    (pipeline / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    with pytest.raises(InputError, match="no known pipeline with 'transformer': None; valid: a pi"):
        load(pipeline)


def test_other_models_are_refused_by_name(pipeline):
    with pytest.raises(InputError, match="a AutoencoderKL of diffusers; valid: DiTTransformer2DM"):
        load(pipeline / "vae")


def test_expectations_are_checked_with_three_shapes(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert load(tmp_path, backbone={"backbone": "dit", "depth": 4, "num_heads": 4}).depth == 4
    with pytest.raises(InputError) as caught:
        load(tmp_path, backbone="dit_s_2")
    assert str(caught.value).startswith(
        f"{tmp_path}: does not fit backbone='dit_s_2': "
        "pos_embed: (1, 16, 48) in the file, (1, 256, 384) expected; "
        "x_embedder.proj.weight: (48, 2, 2, 2) in the file, (384, 4, 2, 2) expected; "
        "x_embedder.proj.bias: (48,) in the file, (384,) expected; and "
    )
    with pytest.raises(InputError, match="its config says num_heads=4, but 8 was given"):
        load(tmp_path, num_heads=8)
    with pytest.raises(InputError, match="is a 'dit', but backbone='sit' was given"):
        load(tmp_path, backbone="sit")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"-00002-of-.*does not exist, but .*index.json names it"),
        ("truncated", r"-00002-of-.*not a readable safetensors file: it is truncated"),
        ("swapped", r"-00002-of-.*does not fit .*index.json: tensor '.*' is (missing|not in the)"),
        ("nan", r"holds 3 values that are not finite"),
        ("index", r"key 'weight_map' must say which file"),
        ("outside", r"'../evil.safetensors' is not the name of a file beside it"),
        ("depth", r"(has no|holds) tensor"),
    ],
)
def test_damaged_shards_are_refused(theirs, tmp_path, damage, message):
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    first, second = sorted(tmp_path.glob(f"{STEM}-*-of-*.safetensors"))[:2]
    index = tmp_path / f"{STEM}.safetensors.index.json"
    if damage == "missing":
        second.unlink()
    elif damage == "truncated":
        second.write_bytes(second.read_bytes()[:-9])
    elif damage == "swapped":
        shutil.copy(first, second)
    elif damage == "nan":
        state = {name: tensor.half() for name, tensor in load_file(second).items()}
        next(t for t in state.values() if t.ndim == 2)[0, :3] = float("nan")
        save_file(state, second)
    elif damage == "index":
        edit(index, weight_map=None)
    elif damage == "outside":
        edit(index, weight_map={"a": "../evil.safetensors"})
    else:
        edit(tmp_path / "config.json", num_layers=5)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_folder_without_weights_is_refused(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    (tmp_path / f"{STEM}.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no weights; valid: diffusion_pytorch_model.safet"):
        load(tmp_path)


def test_weights_without_their_config_are_refused_with_a_hint(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"those of a diffusers transformer; keep its config"):
        load(tmp_path / f"{STEM}.safetensors")


def test_golden_weights_compute_as_the_library(golden, tmp_path):
    numbers = golden("dit_diffusers")
    config = CONFIG | {"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 10}
    model = DiTTransformer2DModel(**config)
    state = {k[3:]: v for k, v in numbers.items() if k.startswith("sd.")}
    model.load_state_dict(state)
    model.save_pretrained(tmp_path)
    net = load(tmp_path)
    with torch.no_grad():
        out = net(numbers["x"], numbers["t"], numbers["y"])
    torch.testing.assert_close(out, numbers["out_stock"], rtol=1e-4, atol=1e-5)


@pytest.fixture
def record(theirs, tmp_path):
    """A model folder of diffusers, with a record that a test may change and write."""
    theirs.save_pretrained(tmp_path)
    return {
        "format": "tinyfusion-export",
        "backbone": "dit",
        "arguments": load(tmp_path).config() | {"class_dropout_prob": 0.2},
        "kept_from": [0, 2, 3, 5],
        "provenance": {"method": "learned"},
        "sha256": weights_sha256(tmp_path),
    }


def write(record, folder):
    (folder / "tinyfusion.json").write_text(json.dumps(record))


def test_record_of_an_export_gives_what_the_config_cannot(record, tmp_path):
    write(record, tmp_path)
    net = load(tmp_path)
    assert (net.kept_from, net.class_dropout_prob) == ((0, 2, 3, 5), 0.2)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.provenance == {"method": "learned"}
    assert checkpoint.layout == "diffusers folder, exported by tinyfusion"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "x"}, "not a record of an export, which says"),
        ({"arguments": None}, "key 'arguments' is missing or wrong: None"),
        ({"kept_from": [0, 1]}, "kept_from must list one increasing index per block"),
        ({"provenance": 3}, "key 'provenance' is missing or wrong: 3"),
        ({"sha256": "00"}, "the weights are incomplete, were changed, or belong to another"),
    ],
)
def test_wrong_records_are_refused(record, tmp_path, changes, message):
    write(record | changes, tmp_path)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_convention_that_was_changed_beside_the_record_is_refused(theirs, record, tmp_path):
    write(record, tmp_path)
    set_convention(theirs, 100.0, 1e-5)
    theirs.save_pretrained(tmp_path)  # the same weights, to be computed otherwise
    with pytest.raises(InputError, match=r"frequency_divisor=127.0, but the config .* 100.0; if"):
        load(tmp_path)
    (tmp_path / "tinyfusion.json").unlink()
    assert load(tmp_path).frequency_divisor == 100.0
