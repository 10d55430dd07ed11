"""Projected features against a float64 autograd loop, for Conv1D and Linear; no batch, order or padding has a say."""

import copy
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from attribution.backward import token_batches
from attribution.checkpoint import Checkpoint, load_checkpoint
from attribution.gradients import FeatureExtractor, Scales
from attribution.projection import Projection
from attribution.sequences import NO_LOSS, Sequence, causal
from schemas.errors import ConfigError
from tests import tiny

PROJECTION = Projection(dim=6, seed=3)
IDENTITY = Projection(dim=1000)
# (tokens, where the loss starts); the third is a query: only its last two tokens are the target's.
TOKENS = [
    ([0, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70], 1),
    ([0, 5, 9, 9, 200], 1),
    ([0, 80, 81, 82, 83, 84, 85, 86], 6),
    ([3, 4], 1),
    ([0, 280, 270, 260, 250, 240, 230], 0),
]
SEQUENCES = [causal(tokens, loss_start) for tokens, loss_start in TOKENS]
OUTSIDE = {"transformer.wte", "model.embed_tokens", "lm_head"}  # the layers that stand in no block


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def path(name, tiny_paths) -> str:
    return tiny_paths[name]


def weights(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The matrices of linear layers and of the embedding by layer name, a tied one once."""
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    embedding = model.get_input_embeddings()
    found = {name: m.weight for name, m in model.named_modules() if isinstance(m, kinds) or m is embedding}
    if found["lm_head"] is embedding.weight:
        del found["lm_head"]
    return found


def as_matrix(name: str, values: torch.Tensor) -> np.ndarray:
    return values.numpy().T if ".h." in name else values.numpy()  # GPT-2's blocks hold theirs transposed


def loss_of(model: torch.nn.Module, number: int) -> torch.Tensor:
    tokens, loss_start = torch.tensor(TOKENS[number][0]), max(TOKENS[number][1], 1)
    logits = model(input_ids=tokens[None]).logits[0]
    return functional.cross_entropy(logits[loss_start - 1 : -1], tokens[loss_start:], reduction="sum")


def oracle(
    path: str, projection: Projection, corrections: Scales | None = None, blocks_only: bool = False
) -> np.ndarray:
    """The features the long way: one example's whole gradient at a time in float64, its sides multiplied as matrices.

    `[sequences, dim]`.
    """
    model = copy.deepcopy(load_checkpoint(path).model).double()
    tracked = {n: w.requires_grad_(True) for n, w in weights(model).items() if not (blocks_only and n in OUTSIDE)}
    rows = []
    for number in range(len(TOKENS)):
        parts = []
        for name, gradient in zip(
            tracked, torch.autograd.grad(loss_of(model, number), list(tracked.values())), strict=True
        ):
            g = as_matrix(name, gradient)
            if corrections is not None:
                g = corrections[name][0][:, None] * g * corrections[name][1]
            left, right = projection.matrix(name, "out", g.shape[0]), projection.matrix(name, "in", g.shape[1])
            parts.append((left.astype(np.float64) @ g @ right.astype(np.float64).T).ravel())
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def adams(name: str, folder) -> Scales:
    """Scales of invented second moments, by the formula of attribution/preconditioner.py."""
    found, model = {}, tiny.MODELS[name]()
    moments = tiny.save_moments(model, folder)
    for layer, weight in weights(model).items():
        [parameter] = [n for n, p in model.named_parameters() if p is weight]
        v = as_matrix(layer, moments[parameter].double()) / (1 - 0.99**7) + 1e-4**2
        found[layer] = v.mean(1) ** -0.25, (v.mean(0) / v.mean()) ** -0.25
    return found


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    """Row by row, relative to the row's norm: single entries may cancel."""
    error = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < tolerance


@pytest.mark.parametrize("blocks_only", [False, True])
@pytest.mark.parametrize("projection", [PROJECTION, IDENTITY], ids=["projected", "whole"])
def test_features_equal_a_float64_autograd_loop(path, projection, blocks_only):
    found = FeatureExtractor(load_checkpoint(path), projection, blocks_only=blocks_only).features(SEQUENCES)
    assert found.dtype == np.float32
    assert_close(found, oracle(path, projection, blocks_only=blocks_only))


@pytest.mark.parametrize("projection", [PROJECTION, IDENTITY], ids=["projected", "whole"])
def test_features_with_adams_correction_equal_a_float64_autograd_loop(path, name, projection, tmp_path):
    corrections = adams(name, tmp_path)
    found = FeatureExtractor(load_checkpoint(path), projection, scales=corrections).features(SEQUENCES)
    assert_close(found, oracle(path, projection, corrections))
    with pytest.raises(AssertionError):  # the correction is not a matter of tolerance
        assert_close(found, oracle(path, projection), tolerance=0.1)


@pytest.mark.parametrize("blocks_only", [False, True])
def test_features_of_the_upper_half_are_columns_of_the_whole_features(path, blocks_only):
    whole = FeatureExtractor(load_checkpoint(path), PROJECTION)
    upper = FeatureExtractor(load_checkpoint(path), PROJECTION, upper=0.5, blocks_only=blocks_only)
    columns = {layer.name: columns for layer, columns in whole.columns.items()}
    expected = [whole.features(SEQUENCES)[:, columns[layer.name]] for layer in upper.layers]
    assert upper.dim <= whole.dim / 2 and sum(upper.widths) == upper.dim
    assert_close(upper.features(SEQUENCES), np.concatenate(expected, axis=1), 1e-5)


def test_loss_of_a_query_is_that_of_its_target_alone(path):
    tokens = [0, 80, 81, 82, 83, 84, 85, 86]
    extractor = FeatureExtractor(load_checkpoint(path), PROJECTION)
    parts = extractor.features([causal(tokens[: end + 1], end) for end in (5, 6, 7)])
    [target] = extractor.features([causal(tokens, 5)])
    assert_close(parts.sum(axis=0), target)
    [whole] = extractor.features([causal(tokens)])
    assert np.linalg.norm(whole - target) > 0.1 * np.linalg.norm(target)


def test_losses_are_the_sums_of_the_oracles_whatever_the_batch_and_the_mask(path):
    backward = FeatureExtractor(load_checkpoint(path), PROJECTION).backward
    model = copy.deepcopy(load_checkpoint(path).model).double()
    expected = [float(loss_of(model, number)) for number in range(len(TOKENS))]
    np.testing.assert_allclose(backward.losses(SEQUENCES).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(backward.losses(SEQUENCES, mask=True).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(backward.losses(SEQUENCES[2:3]).numpy(), expected[2:3], rtol=1e-5)


def test_a_gradient_step_on_an_example_lowers_its_loss_by_the_squared_norm_of_its_feature(path):
    checkpoint = load_checkpoint(path)
    extractor = FeatureExtractor(checkpoint, IDENTITY)
    [feature] = extractor.features(SEQUENCES[:1])
    stepped, rate = copy.deepcopy(load_checkpoint(path).model).double(), 1e-7
    before = float(loss_of(stepped, 0))
    columns = {layer.name: (feature[part], layer.shape) for layer, part in extractor.columns.items()}
    assert columns.keys() == weights(stepped).keys()
    for name, weight in weights(stepped).items():
        gradient, shape = columns[name]
        weight -= rate * torch.from_numpy(as_matrix(name, torch.from_numpy(gradient.reshape(shape)))).double()
    assert before - float(loss_of(stepped, 0)) == pytest.approx(rate * float(feature @ feature), rel=1e-3)


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
    extractor.backward.uses_mask = True
    assert_close(extractor.features(SEQUENCES), plain, 1e-5)


def bare(model: transformers.PreTrainedModel) -> Checkpoint:
    """A checkpoint that no folder holds."""
    names = frozenset(name for name, _ in model.named_parameters())
    model = model.eval().requires_grad_(False)
    return Checkpoint("nowhere", model, tiny.make_tokenizer(), {}, None, None, tiny.CONTEXT, trainable=names)


def bidirectional() -> Checkpoint:
    """A model that looks ahead, so that padding without a mask changes its loss."""
    torch.manual_seed(0)
    return bare(transformers.BertLMHeadModel(tiny.bert_shape()))


def test_a_model_that_sees_padding_is_found_out_and_given_the_mask():
    extractor = FeatureExtractor(bidirectional(), PROJECTION)
    assert extractor.uses_mask
    alone = np.concatenate([extractor.features([s]) for s in SEQUENCES])
    assert_close(extractor.features(SEQUENCES), alone, 1e-5)
    extractor.backward.uses_mask = False
    with pytest.raises(AssertionError):
        assert_close(extractor.features(SEQUENCES), alone, 1e-2)


def test_a_sequence_with_nothing_to_predict_has_a_zero_feature(path):
    extractor = FeatureExtractor(load_checkpoint(path), PROJECTION)
    empty = [causal([5]), causal([5], 0), causal([1, 2, 3], 3), causal([]), Sequence([1, 2], [NO_LOSS, NO_LOSS])]
    found = extractor.features([empty[0], SEQUENCES[0], *empty[1:]])
    np.testing.assert_array_equal(found[[0, 2, 3, 4, 5]], 0)
    assert_close(found[1:2], extractor.features(SEQUENCES[:1]), 1e-5)
    assert extractor.features([]).shape == (0, extractor.dim)
    np.testing.assert_array_equal(extractor.features(empty), 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_feature_that_is_not_finite_leaves_the_others_of_its_batch_as_they_are(tiny_paths, value):
    """Of a model with one broken embedding row; its head, untied, is whole."""
    checkpoint = load_checkpoint(tiny_paths["llama"])
    extractor = FeatureExtractor(checkpoint, PROJECTION)
    expected = extractor.features(SEQUENCES)
    checkpoint.model.get_input_embeddings().weight[9] = value
    found = extractor.features(SEQUENCES)
    assert np.isfinite(found).all(axis=1).tolist() == [True, False, True, True, True]
    whole = [0, 2, 3, 4]
    assert_close(found[whole], expected[whole], 1e-6)


def test_dim_and_coverage_are_those_of_the_tracked_layers(path):
    checkpoint = load_checkpoint(path)
    extractor = FeatureExtractor(checkpoint, PROJECTION)
    tracked = weights(checkpoint.model)
    assert sorted(layer.name for layer in extractor.layers) == sorted(tracked)
    assert extractor.dim == len(tracked) * 6 * 6
    assert extractor.widths == [36] * len(tracked)
    tracked_size = sum(weight.numel() for weight in tracked.values())
    assert FeatureExtractor(load_checkpoint(path), IDENTITY).dim == tracked_size
    assert extractor.coverage.tracked == tracked_size
    assert extractor.coverage.share == tracked_size / sum(p.numel() for p in checkpoint.model.parameters())


def test_a_model_without_layers_of_a_known_kind_is_refused():
    norms = replace(bare(tiny.gpt2()), trainable=frozenset({"transformer.ln_f.weight", "transformer.ln_f.bias"}))
    expected = (
        "model nowhere: expected linear layers to track, found none of a known kind among transformer.ln_f.bias "
        "(50.0%), transformer.ln_f.weight (50.0%)"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        FeatureExtractor(norms, PROJECTION)


class Unheard(transformers.LlamaForCausalLM):
    """A model with a linear layer that its loss never reads."""

    def __init__(self, config: transformers.LlamaConfig):
        super().__init__(config)
        self.other = torch.nn.Linear(16, 30, bias=False)


def test_a_layer_that_no_gradient_reaches_is_refused_with_its_share():
    model = Unheard(tiny.llama().config)
    total = sum(p.numel() for p in model.parameters())
    expected = (
        f"^model nowhere: no gradient reaches 1 of its layers \\(other\\), {16 * 30 / total:.1%} of its trainable "
        "parameters; they cannot be tracked as they are used$"
    )
    with pytest.raises(ConfigError, match=expected):
        FeatureExtractor(bare(model), PROJECTION)


def test_the_probe_loss_is_the_same_each_time_and_moves_with_the_weights(path):
    checkpoint = load_checkpoint(path)
    extractor = FeatureExtractor(checkpoint, PROJECTION)
    loss = extractor.probe_loss()
    assert loss == FeatureExtractor(load_checkpoint(path), IDENTITY, blocks_only=True).probe_loss()
    next(iter(weights(checkpoint.model).values())).mul_(1.01)
    assert extractor.probe_loss() != loss


def test_weights_stay_frozen_and_without_gradients(path):
    checkpoint = load_checkpoint(path)
    FeatureExtractor(checkpoint, PROJECTION).features(SEQUENCES)
    assert not any(p.requires_grad or p.grad is not None for p in checkpoint.model.parameters())


def test_progress_counts_the_sequences_and_tokens_that_have_a_loss(path):
    counts = []
    extractor = FeatureExtractor(load_checkpoint(path), PROJECTION, batch_tokens=20)
    extractor.features([*SEQUENCES, causal([5])], lambda sequences, tokens: counts.append((sequences, tokens)))
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
