"""Every family that is taken: features against whole gradients by autograd in float64, one sequence at a time.

The oracle knows nothing of layers, hooks, batches or padding: it takes a fresh copy of the model, the loss from its
logits, and the gradient of every parameter by name.
"""

import copy
import functools
import re
import shutil
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

from attribution.checkpoint import FAMILIES, Checkpoint, has_bfloat16, load_checkpoint, model_family
from attribution.gradients import FeatureExtractor, Scales
from attribution.layers import Layer
from attribution.projection import Projection
from attribution.sequences import NO_LOSS, Sequence, causal, encode_example
from schemas.errors import ConfigError
from tests import tiny

WHOLE = Projection(dim=10**6)
PROJECTED = Projection(dim=5, seed=3)
NAMES = [*tiny.FAMILIES, *tiny.ADAPTERS]
ENCODERS = {"t5", "t5-untied", "bert", "roberta"}
DRAWN = np.random.default_rng(0)
# Token 1 is the padding of some: no row of their embedding moves for it. The repeated tokens meet in one row.
TOKENS = [
    [0, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70],
    [0, 5, 9, 9, 1, 9, 200],
    [0, 80, 81, 82, 83, 84, 85, 86],
    [3, 4],
    [0, *DRAWN.integers(2, tiny.VOCABULARY, 20).tolist()],
]
LOSS_STARTS = [1, 1, 6, 1, 1]  # the third is a query: only its last two tokens are the target's


@dataclass(frozen=True)
class Family:
    """A checkpoint in float64, untouched by any hook, and what is asked of it."""

    name: str
    checkpoint: Checkpoint

    def fresh(self) -> Checkpoint:
        """A copy of its own, which may be given hooks."""
        return Checkpoint(**{**vars(self.checkpoint), "model": copy.deepcopy(self.checkpoint.model)})

    @functools.cached_property
    def sequences(self) -> list[Sequence]:
        if self.checkpoint.kind == "causal":
            return [causal(tokens, start) for tokens, start in zip(TOKENS, LOSS_STARTS, strict=True)]
        if self.checkpoint.kind == "masked":
            mask = self.checkpoint.tokenizer.mask_token_id
            hidden = [{3, 7}, {1, 2}, {6, 7}, {1}, {2, 3, 4, 15}]
            return [
                Sequence(
                    [mask if t in places else token for t, token in enumerate(tokens)],
                    [token if t in places else NO_LOSS for t, token in enumerate(tokens)],
                )
                for tokens, places in zip(TOKENS, hidden, strict=True)
            ]
        labels = [[290, 7, 8, 1], [100, 9, 9, 2, 4, 1], [290, 33, 34], [5], DRAWN.integers(2, 300, 15).tolist()]
        told = [[*[NO_LOSS] * (2 if i == 2 else 0), *row[2 if i == 2 else 0 :]] for i, row in enumerate(labels)]
        rows = zip(TOKENS, told, labels, strict=True)
        return [Sequence(tokens, answer, [0, *row[:-1]]) for tokens, answer, row in rows]

    @functools.cached_property
    def gradients(self) -> list[dict[str, np.ndarray]]:
        """Of each sequence's loss, for each parameter by its name, stored as the model stores it."""
        model = copy.deepcopy(self.checkpoint.model).requires_grad_(True)
        model.config._experts_implementation = "eager"  # the fast one has no float64
        parameters = dict(model.named_parameters())
        found = []
        for position in range(len(TOKENS)):
            gradient = torch.autograd.grad(self._loss(model, position), list(parameters.values()), allow_unused=True)
            found.append(
                {
                    name: np.zeros(p.shape) if g is None else g.numpy()
                    for (name, p), g in zip(parameters.items(), gradient, strict=True)
                }
            )
        return found

    def _loss(self, model: torch.nn.Module, position: int) -> torch.Tensor:
        sequence = self.sequences[position]
        if self.checkpoint.kind == "causal":
            tokens, start = torch.tensor(TOKENS[position]), LOSS_STARTS[position]
            logits = model(input_ids=tokens[None]).logits[0]
            return functional.cross_entropy(logits[start - 1 : -1], tokens[start:], reduction="sum")
        inputs = {"input_ids": torch.tensor([sequence.tokens])}
        if sequence.decoder_tokens is not None:
            inputs["decoder_input_ids"] = torch.tensor([sequence.decoder_tokens])
        logits = model(**inputs).logits[0]
        return functional.cross_entropy(logits, torch.tensor(sequence.labels), reduction="sum")

    def matrix(self, position: int, layer: Layer) -> np.ndarray:
        """The oracle's gradient of a layer as `[out, in]`, found by the layer's name alone."""
        found = self.gradients[position]
        gradient = found[layer.name] if layer.name in found else found[f"{layer.name}.weight"]
        if self.name == "gpt2" and ".h." in layer.name:  # Conv1D
            return gradient.T
        return gradient.reshape(-1, gradient.shape[-1])

    def whole(self, layer: Layer) -> np.ndarray:
        """`[sequences, out, in]`."""
        return np.stack([self.matrix(i, layer) for i in range(len(TOKENS))])


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("families")
    made = {name: tiny.save(make(), root / name, FAMILIES[name.split("-")[0]]) for name, make in tiny.FAMILIES.items()}
    adapters = {name: tiny.save_adapter(made["llama"], root / name, **shape) for name, shape in tiny.ADAPTERS.items()}
    return {**made, **adapters}


@pytest.fixture(scope="module", params=NAMES)
def family(request, paths) -> Family:
    checkpoint = load_checkpoint(paths[request.param])
    checkpoint.model.double()
    return Family(request.param, checkpoint)


def drawn_scales(layers: list[Layer]) -> Scales:
    drawn = np.random.default_rng(1)
    return {layer.name: tuple(drawn.random(size) + 0.1 for size in layer.shape) for layer in layers}


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest distance of two rows, relative to the expected one's norm."""
    return (np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()


def test_there_is_a_tiny_model_of_every_family_that_is_taken():
    assert {name.split("-")[0] for name in tiny.FAMILIES} == set(FAMILIES)


def test_unprojected_features_are_the_whole_gradients_layer_by_layer(family):
    extractor = FeatureExtractor(family.fresh(), WHOLE)
    features = extractor.features(family.sequences)
    assert extractor.dim == extractor.coverage.tracked
    for position, feature in enumerate(features):
        norm = np.linalg.norm(feature)
        for layer, columns in extractor.columns.items():
            expected = family.matrix(position, layer)
            assert expected.shape == layer.shape
            off = np.abs(feature[columns].reshape(layer.shape) - expected).max()
            assert off < 1e-9 * norm, f"{layer.name} of sequence {position} is off by {off:.1e} of {norm:.1e}"


def test_products_of_unprojected_features_are_those_of_the_whole_gradients(family):
    extractor = FeatureExtractor(family.fresh(), WHOLE)
    features = extractor.features(family.sequences)
    expected = sum(np.einsum("aij,bij->ab", *[family.whole(layer)] * 2) for layer in extractor.layers)
    norms = np.sqrt(np.diag(expected))
    assert (norms > 0).all()
    assert (np.abs(features @ features.T - expected) < 1e-8 * np.outer(norms, norms)).all()


def between(projection: Projection, layer: Layer, gradients: np.ndarray) -> np.ndarray:
    """`[batch, p_o * p_i]`: gradients `[batch, out, in]` between the layer's two projections."""
    left, right = (projection.matrix(layer.name, side, n) for side, n in zip(("out", "in"), layer.shape, strict=True))
    return (left.astype(np.float64) @ gradients @ right.astype(np.float64).T).reshape(len(gradients), -1)


def test_projected_and_corrected_features_are_the_gradients_between_their_two_matrices(family):
    scales = drawn_scales(FeatureExtractor(family.fresh(), WHOLE).layers)
    extractor = FeatureExtractor(family.fresh(), PROJECTED, scales=scales)
    parts = []
    for layer in extractor.layers:
        rows, columns = scales[layer.name]
        parts.append(between(PROJECTED, layer, rows[:, None] * family.whole(layer) * columns))
    assert error(extractor.features(family.sequences), np.concatenate(parts, axis=1)) < 1e-9


def test_products_of_projected_features_are_unbiased(family):
    """The mean over 200 seeds within three standard errors, for features as the test above has them."""
    extractor = FeatureExtractor(family.fresh(), WHOLE)
    whole = [family.whole(layer) for layer in extractor.layers]
    exact = sum(np.einsum("aij,bij->ab", gradients, gradients) for gradients in whole)
    found = np.zeros((200, *exact.shape))
    for seed, products in enumerate(found):
        for layer, gradients in zip(extractor.layers, whole, strict=True):
            features = between(Projection(dim=4, seed=seed), layer, gradients)
            products += features @ features.T
    mean, deviation = found.mean(axis=0), found.std(axis=0, ddof=1)
    assert (deviation > 0).all()
    assert (np.abs(mean - exact) < 3 * deviation / np.sqrt(len(found))).all()


@pytest.mark.parametrize("batch_tokens", [30, 2048])
def test_batches_and_order_have_no_say(family, batch_tokens):
    extractor = FeatureExtractor(family.fresh(), PROJECTED, batch_tokens)
    alone = np.concatenate([extractor.features([sequence]) for sequence in family.sequences])
    assert error(extractor.features(family.sequences), alone) < 1e-9
    order = [3, 0, 4, 2, 1]
    assert error(extractor.features([family.sequences[i] for i in order]), alone[order]) < 1e-9


def test_the_tokenizers_padding_side_has_no_say(family):
    extractor, tokenizer = FeatureExtractor(family.fresh(), PROJECTED), family.checkpoint.tokenizer
    found = {}
    for side in ("right", "left"):
        tokenizer.padding_side = side
        found[side] = extractor.features([encode_example(extractor.checkpoint, text) for text in tiny.TEXTS])
    np.testing.assert_array_equal(found["left"], found["right"])
    assert (np.linalg.norm(found["left"], axis=1) > 0).all()


def test_left_padding_with_a_mask_and_positions_has_no_say(family, monkeypatch):
    if family.checkpoint.kind != "causal":
        return
    extractor = FeatureExtractor(family.fresh(), PROJECTED, batch_tokens=10_000)
    right = extractor.features(family.sequences)
    monkeypatch.setattr(extractor.backward, "run", functools.partial(extractor.backward.run, left=True))
    assert error(extractor.features(family.sequences), right) < 1e-9


def test_only_encoders_need_a_mask(family):
    extractor = FeatureExtractor(family.fresh(), PROJECTED)
    assert extractor.uses_mask == (family.name in ENCODERS)


def test_a_decoder_gets_the_same_features_with_a_mask(family):
    if family.name in ENCODERS:
        return
    extractor = FeatureExtractor(family.fresh(), PROJECTED)
    plain = extractor.features(family.sequences)
    extractor.backward.uses_mask = True
    assert error(extractor.features(family.sequences), plain) < 1e-9


def test_what_is_not_tracked_are_norms_biases_positions_and_routers_and_nothing_is_lost(family):
    extractor = FeatureExtractor(family.fresh(), PROJECTED)
    coverage, model = extractor.coverage, extractor.checkpoint.model
    sizes = {name: p.numel() for name, p in model.named_parameters() if name in extractor.checkpoint.trainable}
    assert coverage.trainable == sum(sizes.values())
    small = r"(bias|norm\w*\.weight|LayerNorm\.weight|ln_\w+\.weight)$|wpe|embed_positions|position_embeddings"
    small += r"|token_type_embeddings|relative_attention_bias|mlp\.gate\.weight$"
    for name, size in coverage.untracked.items():
        assert re.search(small, name), name
        assert size == sizes[name]
    assert coverage.left_out == {}
    tracked = {layer.name.removesuffix(".weight") for layer in extractor.layers}
    assert tracked == {name.removesuffix(".weight") for name in sizes.keys() - coverage.untracked.keys()}
    assert coverage.tracked == coverage.trainable - sum(coverage.untracked.values())
    assert coverage.share == coverage.tracked / coverage.trainable


def test_an_adapters_parameters_are_all_that_is_trainable(paths):
    checkpoint = load_checkpoint(paths["lora"])
    modules = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    assert checkpoint.trainable == {
        f"base_model.model.model.layers.{i}.{module}.lora_{side}.default.weight"
        for i in range(2)
        for module in modules
        for side in "AB"
    }
    assert not any(p.requires_grad for p in checkpoint.model.parameters())
    base = load_checkpoint(paths["llama"]).model
    tokens = torch.tensor([TOKENS[0]])
    assert not torch.allclose(checkpoint.model(input_ids=tokens).logits, base(input_ids=tokens).logits, atol=1e-3)


def test_an_adapter_is_refused_without_peft(paths, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"found an adapter, which needs the package peft \(pip install 'proponent\["):
        load_checkpoint(paths["lora"])


def test_an_adapter_that_lacks_weights_is_refused(paths, tmp_path):
    shutil.copytree(paths["lora"], tmp_path / "copy")
    file = tmp_path / "copy" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: weight for name, weight in weights.items() if "layers.1.mlp" not in name}, file)
    with pytest.raises(ConfigError, match=r"2 of the adapter's weights are missing \(.*layers\.1\.mlp\.down_proj"):
        load_checkpoint(str(tmp_path / "copy"))


def test_an_adapter_that_is_not_plain_lora_is_refused(paths, tmp_path):
    path = tiny.save_adapter(paths["llama"], tmp_path, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(ConfigError, match="found an adapter by DoRA, whose matrices are not applied"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_two_extractors_of_one_model_do_not_take_from_each_other(paths, name):
    checkpoint = load_checkpoint(paths[name])
    sequences = Family(name, checkpoint).sequences
    first = FeatureExtractor(checkpoint, PROJECTED)
    alone = first.features(sequences)
    second = FeatureExtractor(checkpoint, Projection(dim=4, seed=8)).features(sequences)
    np.testing.assert_array_equal(first.features(sequences), alone)
    assert error(second, FeatureExtractor(load_checkpoint(paths[name]), Projection(4, 8)).features(sequences)) < 1e-5


@pytest.mark.skipif(not has_bfloat16(torch.device("cpu")), reason="this CPU has no bfloat16 arithmetic")
@pytest.mark.parametrize("name", NAMES)
def test_features_in_bfloat16_point_where_those_in_float32_do(paths, name):
    sequences = Family(name, load_checkpoint(paths[name])).sequences
    exact = FeatureExtractor(load_checkpoint(paths[name]), PROJECTED).features(sequences)
    found = FeatureExtractor(load_checkpoint(paths[name], dtype="bfloat16"), PROJECTED).features(sequences)
    assert found.dtype == exact.dtype == np.float32
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
    cosines = (found * exact).sum(axis=1) / norms
    assert (cosines > 0.99).all()
    assert not np.array_equal(found, exact)


def test_bfloat16_is_refused_where_the_device_has_none(paths, monkeypatch):
    monkeypatch.setattr("attribution.checkpoint.has_bfloat16", lambda device: False)
    with pytest.raises(ConfigError, match=r"^--dtype: expected float32, as cpu has no bfloat16 arithmetic, f"):
        load_checkpoint(paths["llama"], dtype="bfloat16")


@pytest.mark.parametrize("config", [transformers.BloomConfig, transformers.GemmaConfig])
def test_a_family_without_an_oracle_is_refused_by_name(tmp_path, config):
    config().save_pretrained(tmp_path)
    expected = (
        f"model {tmp_path}: expected a family whose gradients are tested (bert, gpt2, gpt_neox, llama, mistral, "
        f"mixtral, opt, qwen2, qwen3, qwen3_moe, roberta, t5), found {config.model_type!r}; index without the gradient "
        "signal (--signals bm25,dense)"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        model_family(str(tmp_path))
    with pytest.raises(ConfigError, match="expected a family whose gradients are tested"):
        load_checkpoint(str(tmp_path))
