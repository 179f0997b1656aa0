"""MAR against numbers of the official implementation, and its laws."""

import copy

import pytest
import torch
from torch.testing import assert_close

from tinyfusion.backbones.contract import (
    compile_blocks,
    forward_with_states,
    recompute_blocks,
    run_plain,
)
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.presets import build
from tinyfusion.backbones.tokens import patchify, unpatchify
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.scheme import parse_scheme
from tinyfusion.surgery import prune

TINY = {
    "input_size": 4,
    "hidden_size": 48,
    "encoder_depth": 4,
    "decoder_depth": 4,
    "num_heads": 4,
    "patch_size": 1,
    "in_channels": 8,
    "num_classes": 10,
    "buffer_size": 8,
    "head_depth": 2,
    "head_width": 64,
}
SMALL = TINY | {"hidden_size": 16, "encoder_depth": 3, "decoder_depth": 2, "head_width": 16}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def numbers(golden):
    return golden("mar")


def randomised(**arguments):
    """A small network that no part ignores: fresh heads predict zeros."""
    net = MAR(**SMALL | arguments)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net.eval()


def inputs_of(net, count=3, repeats=2, hidden=5):
    """Random inputs; every sample hides other tokens."""
    T, C = net.num_tokens, net.in_channels
    return (
        torch.randn(count, C, net.input_size, net.input_size),
        torch.rand(count, T).argsort(dim=1)[:, :hidden],
        torch.randn(count, repeats, T, net.token_channels),
        torch.randint(0, 1000, (count, repeats, T)),
        torch.arange(count) % (net.num_classes + 1),
    )


def hidden_of(numbers):
    """Numbers of the hidden tokens of the golden batch, in drawing order."""
    return numbers["orders"][:, : int(numbers["num_masked"])]


class Recorder:
    """Runs blocks and keeps what enters and leaves them."""

    def __init__(self):
        self.inputs, self.outputs, self.conditions = {}, {}, []

    def __call__(self, index, block, states, condition):
        self.inputs[index] = states
        self.outputs[index] = run_plain(index, block, states, condition)
        self.conditions.append(condition)
        return self.outputs[index]


def test_parameter_names_are_the_official_ones(numbers):
    official = {k[3:]: tuple(v.shape) for k, v in numbers.items() if k.startswith("sd.")}
    assert {k: tuple(v.shape) for k, v in MAR(**TINY).state_dict().items()} == official


def test_tokens_match_golden_and_come_back(numbers, golden_mar):
    tokens = patchify(numbers["latents"], golden_mar.patch_size)
    assert torch.equal(tokens, numbers["tokens"])
    assert torch.equal(unpatchify(tokens, golden_mar.patch_size), numbers["latents"])


def test_order_inside_a_token_is_channel_row_column():
    net = MAR(**SMALL | {"patch_size": 2})
    x = torch.arange(2 * 8 * 4 * 4.0).view(2, 8, 4, 4)
    seen: list[torch.Tensor] = []
    net.z_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net.conditions(x, torch.tensor([[3], [0]]), torch.tensor([0, 1]))
    (tokens,) = seen
    assert tokens.shape == (2, 4, 32)
    assert torch.equal(tokens[1, 1], x[1, :, 0:2, 2:4].reshape(-1))
    assert torch.equal(unpatchify(tokens, 2), x)


def test_hidden_states_and_conditions_match_golden(numbers, golden_mar):
    recorder = Recorder()
    with torch.no_grad():
        out = golden_mar.conditions(
            numbers["latents"], hidden_of(numbers), numbers["labels"], recorder
        )
        encoded = golden_mar.encoder_norm(recorder.outputs[3])
    assert_close(recorder.inputs[0], numbers["enc.h.in"], **CLOSE)
    assert_close(recorder.inputs[4], numbers["dec.h.in"], **CLOSE)
    for index in range(4):
        assert_close(recorder.outputs[index], numbers[f"enc.h.{index}"], **CLOSE)
        assert_close(recorder.outputs[4 + index], numbers[f"dec.h.{index}"], **CLOSE)
    assert_close(encoded, numbers["enc_out"], **CLOSE)
    assert_close(out, numbers["dec_out"], **CLOSE)
    assert list(recorder.outputs) == list(range(8)) and recorder.conditions == [None] * 8


@pytest.mark.parametrize("case", ["uncond", "allmasked"])
def test_null_class_and_wholly_hidden_images_match_golden(case, numbers, golden_mar):
    x, hidden, y = numbers["latents"], hidden_of(numbers), numbers["labels"]
    if case == "uncond":
        y = torch.full_like(y, golden_mar.null_label)
    else:
        hidden = torch.arange(16).expand(3, -1)
    recorder = Recorder()
    with torch.no_grad():
        out = golden_mar.conditions(x, hidden, y, recorder)
        encoded = golden_mar.encoder_norm(recorder.outputs[3])
    assert_close(encoded, numbers[f"{case}.enc_out"], **CLOSE)
    assert_close(out, numbers[f"{case}.dec_out"], **CLOSE)


def test_head_matches_golden(numbers, golden_mar):
    with torch.no_grad():
        out = golden_mar.head(numbers["net.x"], numbers["net.t"], numbers["net.c"])
        half = numbers["net.x"][:3]
        guided = golden_mar.head(torch.cat([half, half]), numbers["net.cfg_t"], numbers["net.c"])
    assert_close(out, numbers["net.out"], **CLOSE)
    noise, variance = guided.chunk(2, dim=-1)
    conditional, null = noise.chunk(2)
    mixed = null + 3.0 * (conditional - null)
    result = torch.cat([torch.cat([mixed, mixed]), variance], dim=-1)
    assert_close(result, numbers["net.cfg_out_3.0"], **CLOSE)


def test_gradients_of_the_published_loss_match_golden(numbers, golden_mar):
    process = GaussianDiffusion(schedule="squared_cosine")
    t, mask = numbers["diffloss.t"], numbers["mask"]
    batch = process.add_noise(numbers["tokens"].flatten(0, 1), t, numbers["diffloss.noise"])
    noisy, t = batch.noisy.view(3, 1, 16, 8), t.view(3, 1, 16)
    out = golden_mar(numbers["latents"], hidden_of(numbers), noisy, t, numbers["labels"])
    loss = process.loss(out.flatten(0, 2), batch)["loss"]
    assert_close(loss, numbers["diffloss.per_token"], **CLOSE)
    value = (loss * mask.flatten()).sum() / mask.sum()
    assert_close(value, numbers["diffloss.value"], **CLOSE)
    value.backward()
    gradients = {n: p.grad for n, p in golden_mar.named_parameters()}
    wanted = {k[5:]: v for k, v in numbers.items() if k.startswith("grad.")}
    assert len(wanted) == 6
    for name, gradient in wanted.items():
        assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6)
    assert all(gradient is not None for gradient in gradients.values())


def test_hidden_values_are_not_looked_at_and_visible_ones_are():
    net = randomised()
    x, hidden, noisy, t, y = inputs_of(net)
    mask = torch.zeros(3, net.num_tokens).scatter(1, hidden, 1.0)
    where = unpatchify(mask[..., None].expand(-1, -1, net.token_channels), net.patch_size).bool()
    with torch.no_grad():
        out = net(x, hidden, noisy, t, y)
        assert torch.equal(net(torch.where(where, torch.nan, x), hidden, noisy, t, y), out)
        assert (net(torch.where(where, x, x + 1), hidden, noisy, t, y) - out).abs().max() > 1e-3
        assert torch.equal(net(x, hidden.flip(1), noisy, t, y), out)


def test_samples_do_not_depend_on_their_batch():
    net = randomised()
    inputs = inputs_of(net)
    with torch.no_grad():
        together = net(*inputs)
        alone = torch.cat([net(*(part[i : i + 1] for part in inputs)) for i in range(3)])
    assert_close(together, alone, **CLOSE)


def test_repeats_are_independent_of_each_other():
    net = randomised()
    x, hidden, noisy, t, y = inputs_of(net, repeats=3)
    with torch.no_grad():
        together = net(x, hidden, noisy, t, y)
        second = net(x, hidden, noisy[:, 1:2], t[:, 1:2], y)
    assert together.shape == (3, 3, 16, 16)
    assert_close(together[:, 1:2], second, **CLOSE)


def test_states_have_the_documented_shapes():
    net = randomised()
    *inputs, y = inputs_of(net)
    out, states = forward_with_states(net, inputs, ClassLabels(y), range(5))
    assert out.shape == (3, 2, 16, 2 * 8)
    assert [tuple(states[i].shape) for i in range(5)] == [(3, 8 + 11, 16)] * 3 + [(3, 24, 16)] * 2


def test_fresh_model_predicts_nothing_and_has_published_scales():
    net = MAR(**TINY)
    assert not net(*inputs_of(net)).any()
    for table in (net.class_emb.weight, net.encoder_pos_embed_learned, net.mask_token):
        assert 0.015 < table.std() < 0.025
    block = net.encoder_blocks[1]
    assert torch.equal(block.norm1.weight, torch.ones(48)) and not block.norm2.bias.any()
    limit = (6 / (48 + 192)) ** 0.5  # Xavier
    assert 0.95 * limit < block.mlp.fc1.weight.abs().max() <= limit
    assert not block.mlp.fc1.bias.any()
    head = net.diffloss["net"]
    assert not head.res_blocks[0].adaLN_modulation[1].weight.any()
    assert head.res_blocks[0].mlp[0].weight.any()
    assert 0.015 < head.time_embed.mlp[0].weight.std() < 0.025


def test_dropout_acts_in_training_alone():
    net = randomised(dropout=0.5)
    inputs = inputs_of(net)
    with torch.no_grad():
        plain = net(*inputs)
        assert torch.equal(net(*inputs), plain)
        net.train()
        assert (net(*inputs) - plain).abs().max() > 1e-3
    assert "dropout" in net.config() and MAR(**SMALL).config()["dropout"] == 0.0
    quiet = randomised().train()
    with torch.no_grad():
        assert torch.equal(quiet(*inputs), quiet(*inputs))


@pytest.mark.parametrize("kept", [(0, 3), (1, 2, 4), (3, 4), (0, 2)])
def test_pruning_equals_skipping_even_a_whole_stack(kept):
    net = randomised()
    inputs = inputs_of(net)

    def skipping(index, block, states, condition):
        return run_plain(index, block, states, condition) if index in kept else states

    pruned = prune(net, kept)
    encoder_depth = sum(i < 3 for i in kept)
    with torch.no_grad():
        expected = net(*inputs, run_block=skipping)
        assert torch.equal(pruned(*inputs), expected)
        assert (net(*inputs) - expected).abs().max() > 1e-3
    assert pruned.kept_from == kept and pruned.depth == len(kept) and net.depth == 5
    assert pruned.config()["encoder_depth"] == encoder_depth
    assert pruned.config()["decoder_depth"] == len(kept) - encoder_depth
    assert pruned.borders == (encoder_depth,) and pruned.source_borders == (3,)
    twin = build({"backbone": "mar", **pruned.config()}).eval()
    twin.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(*inputs), expected)


def test_pruning_twice_remembers_the_first_places():
    twice = prune(prune(randomised(), [0, 2, 3, 4]), [2, 3])
    assert twice.kept_from == (3, 4) and twice.source_borders == (3,) and twice.borders == (0,)


def test_blocks_are_the_stacks_and_no_second_copy():
    net = MAR(**SMALL)
    assert [*net.blocks] == [*net.encoder_blocks, *net.decoder_blocks]
    assert net.borders == (3,) and net.depth == 5
    assert not any(name.startswith("blocks") for name in net.state_dict())
    twin = copy.deepcopy(net)
    assert twin.blocks[4] is twin.decoder_blocks[1] and twin.blocks[4] is not net.blocks[4]


def test_recomputed_blocks_give_the_same_gradients():
    net = randomised()
    inputs = inputs_of(net)

    def gradients():
        net.zero_grad()
        net(*inputs).square().sum().backward()
        return [p.grad.clone() for p in net.parameters()]

    plain = gradients()
    recompute_blocks(net)
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


def test_blocks_compile_in_place():
    net = randomised()
    inputs, names = inputs_of(net), list(net.state_dict())
    with torch.no_grad():
        plain = net(*inputs)
        compile_blocks(net, "eager")
        assert_close(net(*inputs), plain, **CLOSE)
    assert list(net.state_dict()) == names


def test_lora_goes_into_both_stacks():
    from peft import LoraConfig, get_peft_model

    net = randomised()
    inputs = inputs_of(net)
    plain = net(*inputs)
    targets = r"(encoder|decoder)_blocks\.\d+\.attn\.qkv"
    wrapped = get_peft_model(net, LoraConfig(r=2, target_modules=targets))
    trained = [n for n, p in wrapped.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 5 and all("lora" in n for n in trained)
    assert_close(wrapped(*inputs), plain)
    wrapped(*inputs).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.any() for n, p in wrapped.named_parameters() if "lora_B" in n
    )


def test_example_inputs_run():
    net = MAR(**SMALL)
    inputs = net.example_inputs(2)
    assert inputs[1].shape == (2, 8)
    assert net(*inputs).shape == (2, 1, 16, 16)
    with torch.device("meta"):
        empty = MAR(**SMALL)
    assert {part.device.type for part in empty.example_inputs(device="meta")} == {"meta"}


def test_autocast_runs_and_stays_close():
    net = randomised()
    inputs = inputs_of(net)
    with torch.no_grad():
        plain = net(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(*inputs)
    assert_close(out.float(), plain, rtol=0.1, atol=0.1)


def test_null_label_is_behind_the_classes():
    assert MAR(**SMALL).null_label == 10
    with pytest.raises(InputError, match="no null class"):
        _ = MAR(**SMALL, class_dropout_prob=0.0).null_label


def test_only_noise_is_predicted_without_learned_variance():
    net = MAR(**SMALL, learn_sigma=False)
    assert net(*inputs_of(net)).shape == (3, 2, 16, 8)


@pytest.mark.parametrize(
    ("value", "sizes"),
    [
        ("1:2", [[1, 2]] * 16),
        ("2:4", [[2, 4]] * 8),
        ("8:16", [[8, 16]] * 2),
        ([[3, 4], [9, 12], [1, 10], [4, 6]], [[3, 4], [9, 12], [1, 10], [4, 6]]),
    ],
)
def test_scheme_groups_stay_within_a_stack(value, sizes):
    net = build("mar_digits")
    scheme = parse_scheme(value, net.depth, net.borders)
    assert scheme.sizes == sizes
    assert 16 in [group.start for group in scheme.groups]


@pytest.mark.parametrize("value", [[[4, 20], [6, 12]], [[5, 10], [6, 12], [5, 10]]])
def test_scheme_groups_across_the_border_are_refused(value):
    net = build("mar_digits")
    with pytest.raises(InputError, match="crosses the border at block 16"):
        parse_scheme(value, net.depth, net.borders)


def test_uneven_stacks_put_the_border_where_it_is():
    net = MAR(**SMALL | {"encoder_depth": 2, "decoder_depth": 4})
    assert parse_scheme("1:2", net.depth, net.borders).keep == 3
    with pytest.raises(InputError, match="crosses the border at block 2"):
        parse_scheme("1:3", net.depth, net.borders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_depth": 0, "decoder_depth": 0}, "encoder_depth and decoder_depth are both 0"),
        ({"encoder_depth": -1}, "encoder_depth must be an integer of at least 0, got -1"),
        ({"patch_size": 3}, "patch_size must divide input_size, got patch_size=3"),
        ({"num_heads": 5}, "num_heads must divide hidden_size, got num_heads=5"),
        ({"buffer_size": 0}, "buffer_size must be a positive integer, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        build({"backbone": "mar", **TINY, **change})
