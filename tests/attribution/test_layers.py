"""The tracked weights: each once, under its own name, as a matrix of out and in, and every parameter accounted for."""

import pytest
import torch

from attribution.layers import Coverage, Layer, tracked_layers
from tests import tiny


def layers_of(name: str, **choice) -> tuple[torch.nn.Module, dict[str, Layer], Coverage]:
    model = tiny.FAMILIES[name]()
    found, coverage = tracked_layers(model, frozenset(n for n, _ in model.named_parameters()), **choice)
    return model, {layer.name: layer for layer in found}, coverage


def kinds(layer: Layer) -> list[str]:
    return [use.kind for use in layer.uses]


def test_layers_of_gpt2_and_their_shapes_and_the_tied_head_as_a_second_use_of_the_embedding():
    model, found, _ = layers_of("gpt2")
    blocks = {"attn.c_attn": (48, 16), "attn.c_proj": (16, 16), "mlp.c_fc": (20, 16), "mlp.c_proj": (16, 20)}
    expected = {f"transformer.h.{i}.{name}": shape for i in range(2) for name, shape in blocks.items()}
    assert {name: layer.shape for name, layer in found.items()} == {"transformer.wte": (300, 16), **expected}
    assert list(found) == ["transformer.wte", *expected]  # in the model's order
    assert kinds(found["transformer.wte"]) == ["embedding", "head"]
    assert [use.module for use in found["transformer.wte"].uses] == [model.transformer.wte, model.lm_head]
    assert all(kinds(found[name]) == ["conv1d"] for name in expected)


LLAMA = {
    "self_attn.q_proj": (24, 16),
    "self_attn.k_proj": (12, 16),
    "self_attn.v_proj": (12, 16),
    "self_attn.o_proj": (16, 24),
}
DENSE = {"mlp.gate_proj": (20, 16), "mlp.up_proj": (20, 16), "mlp.down_proj": (16, 20)}
EXPERTS = {"mlp.experts.gate_up_proj": (6 * 40, 16), "mlp.experts.down_proj": (6 * 16, 20)}


@pytest.mark.parametrize(("name", "mlp"), [("llama", DENSE), ("mixtral", EXPERTS)])
def test_layers_of_llama_and_mixtral_and_their_shapes(name, mlp):
    _, found, _ = layers_of(name)
    expected = {f"model.layers.{i}.{layer}": shape for i in range(2) for layer, shape in {**LLAMA, **mlp}.items()}
    expected = {"model.embed_tokens": (300, 16), **expected, "lm_head": (300, 16)}
    assert {layer: made.shape for layer, made in found.items()} == expected
    assert list(found) == list(expected)
    assert kinds(found["model.embed_tokens"]) == ["embedding"] and kinds(found["lm_head"]) == ["head"]


def test_fused_experts_are_two_layers_of_one_module():
    model, found, _ = layers_of("mixtral")
    module = model.model.layers[0].mlp.experts
    uses = [found[f"model.layers.0.mlp.experts.{name}"].uses for name in ("gate_up_proj", "down_proj")]
    assert [[(use.module, use.kind, use.weight) for use in row] for row in uses] == [
        [(module, "experts", "gate_up_proj")],
        [(module, "experts", "down_proj")],
    ]


def test_an_encoder_decoders_shared_embedding_is_one_layer_whatever_reads_it():
    _, found, _ = layers_of("t5")
    assert set(kinds(found["shared"])) == {"embedding", "head"}
    assert sum("embed" in name or "lm_head" in name for name in found) == 0
    _, untied, _ = layers_of("t5-untied")
    assert set(kinds(untied["shared"])) == {"embedding"} and kinds(untied["lm_head"]) == ["head"]


@pytest.mark.parametrize(("name", "blocks"), [("gpt2", "transformer.h"), ("llama", "model.layers")])
def test_the_upper_half_is_the_upper_blocks_without_the_embedding(name, blocks):
    _, whole, _ = layers_of(name)
    _, found, coverage = layers_of(name, upper=0.5)
    head = ["lm_head"] if name == "llama" else []  # the tied one goes with its embedding
    assert list(found) == [layer for layer in whole if layer.startswith(f"{blocks}.1.")] + head
    assert coverage.share < 1
    left_out = {layer for layer in whole if layer.startswith(f"{blocks}.0.") or "wte" in layer or "embed" in layer}
    assert left_out <= {layer.removesuffix(".weight") for layer in coverage.left_out}


def test_the_upper_half_of_an_encoder_decoder_is_that_of_both_stacks():
    _, found, _ = layers_of("t5", upper=0.5)
    assert {name.split("layer")[0] for name in found} == {"encoder.block.1.", "decoder.block.1."}


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "t5-untied", "bert"])
def test_blocks_only_leaves_out_what_stands_in_no_block(name):
    _, whole, _ = layers_of(name)
    _, found, coverage = layers_of(name, blocks_only=True)
    assert found.keys() == {layer for layer in whole if any(part.isdigit() for part in layer.split("."))}
    assert not any(part.isdigit() for layer in coverage.left_out for part in layer.split("."))


@pytest.mark.parametrize("choice", [{}, {"upper": 0.5}, {"blocks_only": True}, {"upper": 0.5, "blocks_only": True}])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_every_parameter_is_tracked_or_left_out_or_untracked_once(name, choice):
    model, found, coverage = layers_of(name, **choice)
    sizes = {parameter: p.numel() for parameter, p in model.named_parameters()}
    tracked = {n for n, p in model.named_parameters() if any(p is layer.parameter for layer in found.values())}
    assert not tracked & coverage.left_out.keys() and not coverage.left_out.keys() & coverage.untracked.keys()
    assert tracked | coverage.left_out.keys() | coverage.untracked.keys() == sizes.keys()
    assert coverage.tracked == sum(sizes[parameter] for parameter in tracked)
    assert coverage.trainable == sum(sizes.values())
    for parameter, size in {**coverage.left_out, **coverage.untracked}.items():
        assert size == sizes[parameter]
    assert coverage.share == coverage.tracked / (coverage.tracked + sum(coverage.untracked.values()))


def test_what_training_does_not_move_is_neither_tracked_nor_counted():
    model = tiny.FAMILIES["llama"]()
    trainable = frozenset({"model.layers.1.mlp.up_proj.weight", "model.norm.weight"})
    [layer], coverage = tracked_layers(model, trainable)
    assert layer.name == "model.layers.1.mlp.up_proj"
    assert coverage == Coverage(320 + 16, 320, {}, {"model.norm.weight": 16})


def test_the_share_is_of_what_was_asked_for():
    coverage = Coverage(trainable=1000, tracked=720, left_out={"e": 100}, untracked={"a": 30, "b": 150})
    assert coverage.share == 720 / 900
    assert Coverage(0, 0, {}, {}).share == 0.0
    assert Coverage(5, 0, {"e": 5}, {}).share == 0.0


def test_the_largest_untracked_are_named_with_their_share_of_all():
    coverage = Coverage(1000, 720, {}, {"b": 30, "a": 30, "c": 150, "d": 10})
    assert coverage.largest_untracked(2) == "c (15.0%), a (3.0%) and 2 more"
    assert coverage.largest_untracked(4) == "c (15.0%), a (3.0%), b (3.0%), d (1.0%)"
    assert Coverage(1, 1, {}, {}).largest_untracked() == ""


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral"])
def test_a_layer_as_a_matrix_has_its_shape_and_multiplies_as_the_module_does(name):
    _, found, _ = layers_of(name)
    for layer in found.values():
        matrix = layer.as_matrix(layer.parameter.detach())
        assert matrix.shape == layer.shape
        [use] = layer.uses[:1]
        x = torch.randn(3, layer.shape[1])
        if use.kind in ("linear", "conv1d", "head"):
            bias = getattr(use.module, "bias", None)
            torch.testing.assert_close(x @ matrix.T + (0 if bias is None else bias), use.module(x))
        elif use.kind == "embedding":
            torch.testing.assert_close(matrix[:5], use.module(torch.arange(5)))


def test_the_matrix_of_experts_is_one_expert_above_the_other():
    _, found, _ = layers_of("mixtral")
    layer = found["model.layers.0.mlp.experts.down_proj"]
    matrix = layer.as_matrix(layer.parameter)
    for expert in range(6):
        assert torch.equal(matrix[16 * expert : 16 * (expert + 1)], layer.parameter[expert])
