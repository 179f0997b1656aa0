"""Files that hold several copies of a network: the average is taken, wherever it is, or none."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from tinyfusion.checkpoints import load, read_checkpoint, save_diffusers, save_model
from tinyfusion.checkpoints.copies import is_average
from tinyfusion.errors import InputError


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def dotless(state):
    """As modules that hold averages name them; of what is trained only."""
    return {name.replace(".", ""): t for name, t in state.items() if name != "pos_embed"}


@pytest.fixture
def copies(net):
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    return {name: 0.5 * tensor for name, tensor in state.items()}, state


@pytest.fixture
def taken(tmp_path, copies):
    """``taken(content)``: which copy is loaded from a file, and its key."""

    def take(content, suffix=".pt", **options):
        path = tmp_path / f"file{suffix}"
        (torch.save if suffix == ".pt" else save_file)(content, path)
        found = load(path, num_heads=4, **options).state_dict()["x_embedder.proj.weight"]
        name = "x_embedder.proj.weight"
        which = [torch.equal(found, copy[name]) for copy in copies].index(True)
        layout = read_checkpoint(path, **options).layout
        return ["raw", "averaged"][which], layout.partition("under '")[2].partition("'")[0]

    return take


@pytest.mark.parametrize(
    "key",
    [
        *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "ema_params"),
        *("params_ema", "ema_net", "shadow", "swa_state", "averaged_model", "netEMA", "g_ema"),
    ],
)
def test_averages_are_known_by_their_key(copies, taken, key):
    raw, averaged = copies
    assert taken({"model": raw, key: averaged, "epoch": 3}) == ("averaged", key)


@pytest.mark.parametrize(
    ("inner", "key"),
    [
        (lambda sd: {"module": sd}, "model_ema"),
        (lambda sd: {"state_dict": sd, "decay": 0.999, "num_updates": 4}, "model_ema.state_dict"),
        (lambda sd: {"shadow": sd, "step": torch.tensor(3)}, "model_ema.shadow"),
        (lambda sd: prefixed("module._orig_mod.", sd), "model_ema"),
        (lambda sd: {**sd, "num_updates": torch.tensor(4), "decay": 0.99}, "model_ema"),
        (lambda sd: {**sd, "decay": torch.tensor([0.9]), "power": torch.tensor(0.7)}, "model_ema"),
        (lambda sd: {0.999: sd}, "model_ema.0.999"),
        (lambda sd: {**prefixed("module.", sd), "n_averaged": torch.tensor(4)}, "model_ema"),
        (
            lambda sd: {
                **prefixed("online_model.", {n: 0.5 * t for n, t in sd.items()}),
                **prefixed("ema_model.", sd),
                "initted": torch.tensor(True),
            },
            "model_ema.ema_model",
        ),
    ],
)
def test_averages_may_lie_deeper_with_counters_beside_them(copies, taken, inner, key):
    raw, averaged = copies
    assert taken({"model": raw, "model_ema": inner(averaged)}) == ("averaged", key)


@pytest.mark.parametrize("prefix", ["ema.", "ema_model.", "model_ema.module.", "callback.ema."])
@pytest.mark.parametrize("layout", ["lightning", "safetensors"])
def test_averages_may_share_a_state_dict_with_the_weights(copies, taken, prefix, layout):
    raw, averaged = copies
    state = {**prefixed("model.", raw), **prefixed(prefix, averaged)}
    state["vae.conv.weight"] = torch.zeros(3)
    key = prefix.removesuffix("module.").rstrip(".")
    if layout == "safetensors":
        assert taken(state, ".safetensors") == ("averaged", key)
        return
    content = {"state_dict": state, "pytorch-lightning_version": "2.5", "global_step": 3}
    assert taken(content) == ("averaged", f"state_dict.{key}")


def test_a_trainer_may_keep_averages_among_its_callbacks(copies, taken):
    raw, averaged = copies
    content = {
        "state_dict": prefixed("net.", raw),
        "callbacks": {"EMACallback": {"ema_state_dict": prefixed("net.", averaged)}},
        "pytorch-lightning_version": "2.5",
    }
    assert taken(content) == ("averaged", "callbacks.EMACallback.ema_state_dict.net")


@pytest.mark.parametrize("inner", ["", "diffusion_model."])
def test_averages_without_dots_in_their_names_take_those_of_the_weights(
    copies, taken, inner, caplog
):
    raw, averaged = copies
    state = {
        **prefixed(f"model.{inner}", raw),
        **prefixed("model_ema.", dotless(prefixed(inner, averaged))),
        "model_ema.decay": torch.tensor(0.99),
        "model_ema.num_updates": torch.tensor(4),
    }
    state.pop(f"model_ema.{inner.replace('.', '')}pos_embed", None)
    assert taken({"state_dict": state}) == ("averaged", "state_dict.model_ema")
    assert "the averages leave out 1 of 52 tensors, which are taken from 'state_dict" in caplog.text


def test_averages_of_what_was_trained_are_completed(copies, net, tmp_path, caplog):
    raw, averaged = copies
    part = {name: tensor for name, tensor in averaged.items() if "embed" not in name}
    torch.save({"model": raw, "ema": part}, tmp_path / "net.pt")
    loaded = load(tmp_path / "net.pt", num_heads=4).state_dict()
    assert all(torch.equal(loaded[name], {**raw, **part}[name]) for name in raw)
    assert "the averages leave out 8 of 52 tensors, which are taken from 'model'" in caplog.text


def refused(tmp_path, content, message):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InputError, match=message):
        load(tmp_path / "net.pt", num_heads=4)


def test_it_is_not_guessed_which_of_several_it_is(copies, tmp_path):
    raw, averaged = copies
    none_named = r"holds 2 sets of weights, none of them named an average; say which: weights="
    refused(tmp_path, {"a": raw, "b": averaged}, none_named + "a or weights=b$")
    refused(tmp_path, {"model": raw, "best": averaged}, none_named + "model or weights=best$")
    refused(tmp_path, prefixed("a.", raw) | prefixed("b.", averaged), none_named + "a or")
    two = {"model": raw, "ema_0.999": averaged, "ema_0.9999": averaged}
    refused(
        tmp_path, two, r"holds 2 averages; say which: weights=ema_0\.999 or weights=ema_0\.9999"
    )
    refused(tmp_path, {"model": raw, "emas": [raw, averaged]}, "weights=emas.0 or weights=emas.1$")


def test_averages_that_do_not_fit_are_refused(copies, tmp_path):
    raw, averaged = copies
    other = averaged | {"pos_embed": averaged["pos_embed"][:, :9]}
    message = r"under 'ema' are not those of the weights under 'model': 'pos_embed' has the shapes"
    refused(tmp_path, {"model": raw, "ema": other}, message)
    fewer = {name: tensor for name, tensor in averaged.items() if "blocks.3." not in name}
    refused(tmp_path, {"model": raw, "ema": fewer}, "of 'blocks' they have 3 and 4; say which")
    message = "which have no tensor 'gain.a', or take what is not averaged: weights=model$"
    refused(tmp_path, {"model": raw, "ema": {"gain.a": torch.zeros(3)}}, message)


@pytest.mark.parametrize("kind", [list, tuple])
def test_averages_without_names_are_refused(copies, tmp_path, kind):
    raw, averaged = copies
    shadow = {"shadow_params": kind(averaged.values()), "decay": 0.9999, "collected_params": None}
    message = r"'ema.shadow_params' are 52 tensors without names; .*copy_to.*: weights=model$"
    refused(tmp_path, {"model": raw, "ema": shadow}, message)
    refused(tmp_path, shadow, r"'shadow_params' are 52 tensors without names; .*state_dict\(\)$")


def test_averages_beside_the_state_of_an_optimizer_are_seen(copies, taken, tmp_path):
    raw, averaged = copies
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]}
    content = {"model": raw, "optimizer": {**optimizer, "ema": averaged}}
    assert taken(content) == ("averaged", "optimizer.ema")
    several = {"model": raw, "optimizers": [{**optimizer, "ema": tuple(averaged.values())}]}
    refused(tmp_path, several, r"'optimizers.0.ema' are 52 tensors without names; .*weights=model$")
    assert taken({"model": raw, "optimizer": optimizer}) == ("raw", "model")


def test_averages_that_are_arrays_of_numpy_are_refused(copies, tmp_path):
    raw, averaged = copies
    arrays = {name: tensor.numpy() for name, tensor in averaged.items()}
    message = r"'ema' are 52 arrays of numpy, not tensors; .*as_tensor.*: weights=model$"
    refused(tmp_path, {"model": raw, "ema": arrays}, message)
    refused(tmp_path, arrays, r"under '\.' are 52 arrays of numpy, not tensors; .*items\(\)\}$")


def test_folders_with_averages_beside_the_weights_are_not_guessed_at(net, tmp_path):
    save_model(net, tmp_path / "ours", {})
    shutil.copy(tmp_path / "ours/model.safetensors", tmp_path / "ours/model_ema.safetensors")
    save_diffusers(net, tmp_path / "pipe")
    shutil.copytree(tmp_path / "pipe/transformer", tmp_path / "pipe/transformer_ema")
    for folder, named in (("ours", "model_ema.safetensors"), ("pipe", "transformer_ema")):
        with pytest.raises(InputError, match=rf"averages beside its weights \({named}\); give"):
            read_checkpoint(tmp_path / folder)
        read_checkpoint(tmp_path / folder / named, weights=None)
    read_checkpoint(tmp_path / "ours/model.safetensors")
    read_checkpoint(tmp_path / "pipe/transformer")


def test_what_is_no_copy_of_the_network_changes_nothing(copies, taken):
    raw, averaged = copies
    others = {"discriminator": {"conv.weight": torch.zeros(3)}, "vae_ema": {"a.b": torch.zeros(2)}}
    others["vae"] = {"a.b": torch.zeros(2)}
    assert taken({"model": raw, **others}) == ("raw", "model")
    deeper = raw | {n.replace("blocks.3", "blocks.4"): t for n, t in raw.items()}
    assert taken({"model": raw, "teacher": deeper}) == ("raw", "model")
    assert taken({"model": raw, "ema": None}) == ("raw", "model")
    assert taken({"model": raw, "ema": {"decay": torch.tensor(0.9), "step": 3}}) == ("raw", "model")
    assert taken({**averaged, "num_updates": 7, "step": torch.tensor(3)}) == ("averaged", "")


def test_weights_says_which(copies, taken, tmp_path):
    raw, averaged = copies
    content = {"model": raw, "ema": {"0.999": {"module": raw}, "0.9999": {"module": averaged}}}
    assert taken(content, weights="ema.0.9999") == ("averaged", "ema.0.9999")
    assert taken(content, weights="0.999") == ("raw", "ema.0.999")
    assert taken(content, weights="model") == ("raw", "model")
    with pytest.raises(InputError, match="several sets of weights are under weights='ema'; valid:"):
        load(tmp_path / "file.pt", weights="ema")
    with pytest.raises(InputError, match="no set of weights is under weights='raw'; valid: model,"):
        load(tmp_path / "file.pt", weights="raw")
    with pytest.raises(InputError, match=r"weights='ema': .* model folder, which holds one set of"):
        load("digits", weights="ema")


def test_a_class_of_ones_own_is_treated_alike(two_streams, tmp_path):
    net = two_streams.TwoStreams()
    averaged = net.state_dict()
    raw = {name: 0.5 * tensor for name, tensor in averaged.items()}
    kind = f"{two_streams.__name__}.TwoStreams"
    name = next(iter(raw))
    for content in (
        {"model": raw, "ema_state_dict": averaged},
        {"state_dict": prefixed("net.", raw) | prefixed("ema.", averaged)},
        {"state_dict": prefixed("net.", raw) | prefixed("net_ema.", dotless(averaged))},
    ):
        torch.save(content, tmp_path / "net.pt")
        loaded = load(tmp_path / "net.pt", {"backbone": kind, **net.config()})
        assert torch.equal(loaded.state_dict()[name], averaged[name])


def test_words_that_only_contain_others_are_no_averages():
    assert not any(map(is_average, ["schema", "remapped", "model", "no_ema", "ema_online", "swap"]))
    assert all(
        map(is_average, ["EMA", "modelEMA", "emamodel", "EMACallback", "avg_1", "x_averages"])
    )
