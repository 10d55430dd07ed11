"""Projected features against a float64 autograd loop, for Conv1D and Linear; no batch, order or padding has a say."""

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from attribution.checkpoint import CHECKPOINT_JSON, Checkpoint, load_checkpoint
from attribution.gradients import FeatureExtractor, Sequence, linear_modules, token_batches, weight_shape
from attribution.projection import Projection
from schemas.errors import ConfigError
from tests import tiny

PROJECTION = Projection(dim=6, seed=3)
IDENTITY = Projection(dim=1000)
META = {"step": 7, "beta2": 0.99, "eps": 1e-4, "learning_rate": 1e-3}
SEQUENCES = [
    Sequence([0, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70]),
    Sequence([0, 5, 9, 9, 200]),
    Sequence([0, 80, 81, 82, 83, 84, 85, 86], loss_start=6),  # a query: only its last two tokens are the target's
    Sequence([3, 4]),
    Sequence([0, 280, 270, 260, 250, 240, 230], loss_start=0),
]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def path(name, tiny_paths) -> str:
    return tiny_paths[name]


@pytest.fixture(scope="module")
def corrected_path(name, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("moments") / name
    model = tiny.MODELS[name]()
    tiny.save(model, folder)
    tiny.save_moments(model, folder)
    (folder / CHECKPOINT_JSON).write_text(json.dumps(META))
    return str(folder)


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds) and name != "lm_head"}


def oracle(path: str, sequence: Sequence, projection: Projection, moments: dict | None = None) -> np.ndarray:
    """One example's feature the long way: its whole gradient in float64, corrected and projected as matrices."""
    model = copy.deepcopy(load_checkpoint(path).model).double()
    found = layers(model)
    weights = [module.weight.requires_grad_(True) for module in found.values()]
    logits = model(input_ids=torch.tensor([sequence.tokens])).logits[0]
    start = max(sequence.loss_start, 1)
    loss = sum(
        functional.cross_entropy(logits[t - 1], torch.tensor(sequence.tokens[t]))
        for t in range(start, len(sequence.tokens))
    )
    parts = []
    for (name, module), gradient in zip(found.items(), torch.autograd.grad(loss, weights), strict=True):
        conv = isinstance(module, transformers.pytorch_utils.Conv1D)
        g = gradient.numpy().T if conv else gradient.numpy()
        if moments is not None:
            v = moments[f"{name}.weight"].double().numpy()
            v = (v.T if conv else v) / (1 - META["beta2"] ** META["step"]) + META["eps"] ** 2
            g = v.mean(1)[:, None] ** -0.25 * g * (v.mean(0) / v.mean())[None, :] ** -0.25
        left, right = projection.matrix(name, "out", g.shape[0]), projection.matrix(name, "in", g.shape[1])
        parts.append((left.astype(np.float64) @ g @ right.astype(np.float64).T).ravel())
    return np.concatenate(parts)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    """Row by row, relative to the row's norm: single entries may cancel."""
    error = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < tolerance


@pytest.mark.parametrize("projection", [PROJECTION, IDENTITY], ids=["projected", "whole"])
def test_features_equal_a_float64_autograd_loop(path, projection):
    found = FeatureExtractor(load_checkpoint(path), projection).features(SEQUENCES)
    assert_close(found, np.stack([oracle(path, s, projection) for s in SEQUENCES]))


@pytest.mark.parametrize("projection", [PROJECTION, IDENTITY], ids=["projected", "whole"])
def test_features_with_adams_correction_equal_a_float64_autograd_loop(corrected_path, name, projection):
    extractor = FeatureExtractor(load_checkpoint(corrected_path), projection)
    moments = tiny.save_moments(tiny.MODELS[name](), Path(corrected_path))
    expected = np.stack([oracle(corrected_path, s, projection, moments) for s in SEQUENCES])
    found = extractor.features(SEQUENCES)
    assert extractor.optimizer_corrected
    assert_close(found, expected)
    plain = np.stack([oracle(corrected_path, s, projection) for s in SEQUENCES])
    with pytest.raises(AssertionError):  # the correction is not a matter of tolerance
        assert_close(found, plain, tolerance=0.1)


def test_loss_of_a_query_is_that_of_its_target_alone(path):
    tokens = [0, 80, 81, 82, 83, 84, 85, 86]
    extractor = FeatureExtractor(load_checkpoint(path), PROJECTION)
    parts = extractor.features([Sequence(tokens[: end + 1], loss_start=end) for end in (5, 6, 7)])
    [target] = extractor.features([Sequence(tokens, loss_start=5)])
    assert_close(parts.sum(axis=0), target)
    [whole] = extractor.features([Sequence(tokens)])
    assert np.linalg.norm(whole - target) > 0.1 * np.linalg.norm(target)


def test_a_gradient_step_on_an_example_lowers_its_loss_by_the_squared_norm_of_its_feature(path):
    checkpoint = load_checkpoint(path)
    extractor = FeatureExtractor(checkpoint, IDENTITY)
    [feature] = extractor.features(SEQUENCES[:1])
    gradients = dict(zip(layers(checkpoint.model), np.split(feature, np.cumsum(sizes(checkpoint))[:-1]), strict=True))
    stepped, rate = copy.deepcopy(load_checkpoint(path).model).double(), 1e-7
    before = loss_of(stepped, SEQUENCES[0])
    for name, module in layers(stepped).items():
        g = torch.from_numpy(gradients[name].reshape(weight_shape(module))).double()
        module.weight -= rate * (g if isinstance(module, torch.nn.Linear) else g.T)
    assert before - loss_of(stepped, SEQUENCES[0]) == pytest.approx(rate * float(feature @ feature), rel=1e-3)


def sizes(checkpoint: Checkpoint) -> list[int]:
    return [module.weight.numel() for module in layers(checkpoint.model).values()]


def loss_of(model: torch.nn.Module, sequence: Sequence) -> float:
    tokens = torch.tensor([sequence.tokens])
    return float(functional.cross_entropy(model(input_ids=tokens).logits[0, :-1], tokens[0, 1:], reduction="sum"))


@pytest.mark.parametrize("batch_tokens", [1, 13, 30, 10_000])
def test_features_do_not_depend_on_batch_size_and_padding(path, batch_tokens):
    alone = np.concatenate([FeatureExtractor(load_checkpoint(path), PROJECTION).features([s]) for s in SEQUENCES])
    assert_close(FeatureExtractor(load_checkpoint(path), PROJECTION, batch_tokens).features(SEQUENCES), alone, 1e-5)


def test_features_come_in_the_given_order_whatever_it_is(path):
    extractor = FeatureExtractor(load_checkpoint(path), PROJECTION, batch_tokens=20)
    whole = extractor.features(SEQUENCES)
    order = [3, 0, 4, 2, 1]
    assert_close(extractor.features([SEQUENCES[i] for i in order]), whole[order], 1e-5)
    np.testing.assert_array_equal(extractor.features(SEQUENCES), whole)  # nothing is left over from a batch


def test_a_decoder_needs_no_mask_and_gets_the_same_features_with_one(path):
    extractor = FeatureExtractor(load_checkpoint(path), PROJECTION)
    assert not extractor.uses_mask
    plain = extractor.features(SEQUENCES)
    extractor.uses_mask = True
    assert_close(extractor.features(SEQUENCES), plain, 1e-5)


def bidirectional() -> Checkpoint:
    """A model that looks ahead, so that padding without a mask changes its loss."""
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(tiny.bert_shape()).eval().requires_grad_(False)
    return Checkpoint("nowhere", model, tiny.make_tokenizer(), {}, None, None, tiny.CONTEXT)


def test_a_model_that_sees_padding_is_found_out_and_given_the_mask():
    extractor = FeatureExtractor(bidirectional(), PROJECTION)
    assert extractor.uses_mask
    alone = np.concatenate([extractor.features([s]) for s in SEQUENCES])
    assert_close(extractor.features(SEQUENCES), alone, 1e-5)
    extractor.uses_mask = False
    with pytest.raises(AssertionError):
        assert_close(extractor.features(SEQUENCES), alone, 1e-2)


def test_a_sequence_with_nothing_to_predict_has_a_zero_feature(path):
    extractor = FeatureExtractor(load_checkpoint(path), PROJECTION)
    empty = [Sequence([5]), Sequence([5], loss_start=0), Sequence([1, 2, 3], loss_start=3), Sequence([])]
    found = extractor.features([empty[0], SEQUENCES[0], *empty[1:]])
    np.testing.assert_array_equal(found[[0, 2, 3, 4]], 0)
    assert_close(found[1:2], extractor.features(SEQUENCES[:1]), 1e-5)
    assert extractor.features([]).shape == (0, extractor.dim)


def test_a_value_that_is_not_finite_is_refused_with_the_sequences_position(tiny_paths):
    checkpoint = load_checkpoint(tiny_paths["llama"])
    extractor = FeatureExtractor(checkpoint, PROJECTION)
    checkpoint.model.get_input_embeddings().weight[200] = torch.nan
    extractor.features([SEQUENCES[0], SEQUENCES[2]])
    with pytest.raises(FloatingPointError, match=r"^gradient of sequence 1 is not finite$"):
        extractor.features(SEQUENCES)


def test_every_layer_but_the_head_is_tracked_with_its_weight_as_out_and_in(tiny_paths):
    found = linear_modules(load_checkpoint(tiny_paths["gpt2"]).model)
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert list(found) == [f"transformer.h.{i}.{name}" for i in range(2) for name in names]
    assert [weight_shape(m) for m in found.values()] == [(48, 16), (16, 16), (40, 16), (16, 40)] * 2
    found = linear_modules(load_checkpoint(tiny_paths["llama"]).model)
    shapes = [(16, 16), (8, 16), (8, 16), (16, 16), (24, 16), (24, 16), (16, 24)]
    assert [weight_shape(m) for m in found.values()] == shapes * 2
    assert not any("lm_head" in name for name in found)


def test_dim_and_coverage_are_those_of_the_tracked_layers(path):
    checkpoint = load_checkpoint(path)
    extractor = FeatureExtractor(checkpoint, PROJECTION)
    assert extractor.dim == len(layers(checkpoint.model)) * 6 * 6
    assert FeatureExtractor(load_checkpoint(path), IDENTITY).dim == sum(sizes(checkpoint))
    assert extractor.coverage == sum(sizes(checkpoint)) / sum(p.numel() for p in checkpoint.model.parameters())


def test_a_model_without_layers_of_a_known_kind_is_refused():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=300, n_embd=16, n_layer=0, n_head=2))
    checkpoint = Checkpoint("nowhere", model, tiny.make_tokenizer(), {}, None, None, tiny.CONTEXT)
    with pytest.raises(ConfigError, match="model nowhere: expected linear layers to track, found none of a known kind"):
        FeatureExtractor(checkpoint, PROJECTION)


def test_weights_stay_frozen_and_without_gradients(path):
    checkpoint = load_checkpoint(path)
    FeatureExtractor(checkpoint, PROJECTION).features(SEQUENCES)
    assert not any(p.requires_grad or p.grad is not None for p in checkpoint.model.parameters())


def test_progress_counts_the_sequences_and_tokens_that_have_a_loss(path):
    counts = []
    extractor = FeatureExtractor(load_checkpoint(path), PROJECTION, batch_tokens=20)
    extractor.features([*SEQUENCES, Sequence([5])], lambda sequences, tokens: counts.append((sequences, tokens)))
    assert len(counts) > 1
    assert np.sum(counts, axis=0).tolist() == [len(SEQUENCES), sum(len(s.tokens) for s in SEQUENCES)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_batches_hold_each_position_once_and_keep_the_budget(lengths, budget):
    batches = list(token_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    for batch, following in itertools.pairwise(batches):  # no batch ends while another would fit
        assert (len(batch) + 1) * lengths[following[0]] > budget
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths)
