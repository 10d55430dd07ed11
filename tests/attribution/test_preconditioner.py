"""The optimizer's scales by hand; on a rank-one V both sides together are V^-1/4; the estimate against autograd."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from attribution import preconditioner
from attribution.backward import Backward
from attribution.checkpoint import FAMILIES, Checkpoint
from attribution.layers import Layer, tracked_layers
from attribution.preconditioner import FactoredMoment, estimate_moments, factor, load_moments, save_moments, scales
from attribution.sequences import Sequence, causal
from tests import tiny


def adam_scales(v: np.ndarray, step: int, beta2: float, eps: float) -> tuple[np.ndarray, np.ndarray]:
    return scales(factor(torch.from_numpy(v), step, beta2), eps)


def test_scales_are_row_and_column_means_to_the_minus_quarter():
    second_moment = np.array([[1.0, 2.0, 3.0], [5.0, 7.0, 6.0]])
    rows, columns = adam_scales(second_moment, step=3, beta2=0.9, eps=0.0)
    c = 1 / (1 - 0.9**3)
    expected_rows = [(c * (1 + 2 + 3) / 3) ** -0.25, (c * (5 + 7 + 6) / 3) ** -0.25]
    mean = (1 + 2 + 3 + 5 + 7 + 6) / 6
    expected_columns = [((1 + 5) / 2 / mean) ** -0.25, ((2 + 7) / 2 / mean) ** -0.25, ((3 + 6) / 2 / mean) ** -0.25]
    np.testing.assert_allclose(rows, expected_rows, rtol=1e-14)
    np.testing.assert_allclose(columns, expected_columns, rtol=1e-14)


def test_eps_is_added_to_every_entry_of_v():
    drawn = np.random.default_rng(0).random((5, 7))
    rows, columns = adam_scales(drawn, step=4, beta2=0.95, eps=0.3)
    v = drawn / (1 - 0.95**4) + 0.3**2
    np.testing.assert_allclose(rows, v.mean(1) ** -0.25, rtol=1e-14)
    np.testing.assert_allclose(columns, (v.mean(0) / v.mean()) ** -0.25, rtol=1e-14)


def test_two_features_together_divide_by_the_root_of_a_rank_one_second_moment():
    rng = np.random.default_rng(0)
    v = np.outer(rng.random(5) + 0.1, rng.random(7) + 0.1)
    rows, columns = adam_scales(v, step=10, beta2=0.99, eps=0.0)
    both = np.outer(rows, columns) ** 2  # one factor for the query's feature, one for the example's
    np.testing.assert_allclose(both, (v / (1 - 0.99**10)) ** -0.5, rtol=1e-12)


def test_bias_correction_makes_the_first_step_a_single_squared_gradient():
    gradient = np.outer([1.0, 2.0], [3.0, 1.0, 0.5])
    rows, columns = adam_scales((1 - 0.99) * gradient**2, step=1, beta2=0.99, eps=0.0)
    np.testing.assert_allclose(np.outer(rows, columns) ** 2, 1 / np.abs(gradient), rtol=1e-10)


def test_a_row_or_column_without_gradient_gives_a_large_finite_number():
    v = np.ones((3, 4), dtype=np.float32) * 1e-6
    v[1] = 0.0
    v[:, 2] = 0.0
    rows, columns = adam_scales(v, step=5, beta2=0.99, eps=1e-8)
    assert np.isfinite(rows).all() and np.isfinite(columns).all()
    assert rows[1] == pytest.approx((1e-8**2) ** -0.25)
    assert rows[1] > 100 * rows[0] and columns[2] > 100 * columns[0]


def test_all_zero_second_moments_are_the_plain_gradient_over_eps():
    rows, columns = adam_scales(np.zeros((2, 3)), step=1, beta2=0.99, eps=1e-8)
    np.testing.assert_allclose(np.outer(rows, columns) ** 2, np.full((2, 3), 1 / 1e-8), rtol=1e-12)


@pytest.mark.parametrize("at_once", [1, 20, 2**24])
def test_factors_are_means_in_float64_whatever_the_type_the_order_of_storage_and_the_piece(at_once, monkeypatch):
    monkeypatch.setattr(preconditioner, "AT_ONCE", at_once)
    v = torch.rand(9, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = factor(v.T)
    np.testing.assert_allclose(found.rows, v.double().numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.columns, v.double().numpy().mean(1), rtol=1e-14)


# The repeated tokens meet in one row of the embedding; token 1 is the padding of some, whose row never moves.
TOKENS = [[0, 60, 61, 62, 63, 64, 65, 66], [0, 5, 9, 9, 1, 9, 200, 5], [0, 80, 81], [3, 4], [0, 7, 7, 7, 9, 250, 7, 30]]


def sequences_of(checkpoint: Checkpoint) -> list[Sequence]:
    if checkpoint.kind == "causal":
        return [*map(causal, TOKENS), causal([3]), causal(TOKENS[0], loss_start=6)]
    if checkpoint.kind == "masked":
        return [Sequence(tokens, [tokens[0], *[-100] * (len(tokens) - 2), tokens[-1]]) for tokens in TOKENS]
    return [Sequence(tokens, tokens[::-1], [0, *tokens[:0:-1]]) for tokens in TOKENS]


def family(name: str) -> Checkpoint:
    """In float64."""
    model = tiny.FAMILIES[name]().double().requires_grad_(False)
    trainable = frozenset(parameter for parameter, _ in model.named_parameters())
    kind = FAMILIES[model.config.model_type]
    return Checkpoint(name, model, tiny.make_tokenizer(kind=kind), {}, None, None, tiny.CONTEXT, kind, trainable)


def squared_gradients(checkpoint: Checkpoint, layers: list[Layer], sequence: Sequence) -> list[np.ndarray]:
    """`[out, in]` of each layer, by autograd on a copy that has no hook."""
    model = copy.deepcopy(checkpoint.model).requires_grad_(True)
    model.config._experts_implementation = "eager"  # the fast one has no float64
    parameters, names = dict(model.named_parameters()), {id(p): n for n, p in checkpoint.model.named_parameters()}
    inputs = {"input_ids": torch.tensor([sequence.tokens])}
    if sequence.decoder_tokens is not None:
        inputs["decoder_input_ids"] = torch.tensor([sequence.decoder_tokens])
    labels = torch.tensor(sequence.labels)
    functional.cross_entropy(model(**inputs).logits[0], labels, reduction="sum").backward()
    found = [parameters[names[id(layer.parameter)]].grad for layer in layers]
    return [
        np.zeros(layer.shape) if gradient is None else layer.as_matrix(gradient).numpy() ** 2
        for layer, gradient in zip(layers, found, strict=True)
    ]


def estimate(checkpoint: Checkpoint, sequences: list[Sequence], batch_tokens: int) -> dict[str, FactoredMoment]:
    layers, _ = tracked_layers(checkpoint.model, checkpoint.trainable)
    return estimate_moments(Backward(checkpoint, layers), sequences, batch_tokens)


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied", "mixtral", "qwen3_moe", "t5", "bert"])
def test_the_estimate_is_the_mean_of_squared_gradients_with_one_mean_example_more(name, monkeypatch):
    checkpoint = family(name)
    layers, _ = tracked_layers(checkpoint.model, checkpoint.trainable)
    sequences = sequences_of(checkpoint)
    told = [sequence for sequence in sequences if sequence.has_loss]
    squares = [squared_gradients(checkpoint, layers, sequence) for sequence in told]
    for batch_tokens, at_once in ((10_000, 2**24), (24, 1), (10_000, 6_000), (1, 2**24)):
        monkeypatch.setattr(preconditioner, "AT_ONCE", at_once)
        moments = estimate(checkpoint, sequences, batch_tokens)
        assert list(moments) == [layer.name for layer in layers]
        for i, layer in enumerate(layers):
            v = np.mean([found[i] for found in squares], axis=0)
            n = len(told)
            np.testing.assert_allclose(moments[layer.name].rows, (n * v.mean(1) + v.mean()) / (n + 1), rtol=1e-9)
            np.testing.assert_allclose(moments[layer.name].columns, (n * v.mean(0) + v.mean()) / (n + 1), rtol=1e-9)


def test_the_two_uses_of_a_tied_weight_do_not_add_up_as_if_they_were_two():
    """The cross terms matter: the oracle above would not pass without them."""
    checkpoint = family("llama-tied")
    layers, _ = tracked_layers(checkpoint.model, checkpoint.trainable)
    head = next(use for use in layers[0].uses if use.kind == "head")
    embedding = next(use for use in layers[0].uses if use.kind == "embedding")
    apart = [Layer(use.kind, layers[0].parameter, layers[0].shape, [use]) for use in (head, embedding)]
    moments = estimate_moments(Backward(checkpoint, apart), sequences_of(checkpoint), 64)
    whole = estimate(family("llama-tied"), sequences_of(checkpoint), 64)[layers[0].name]
    summed = moments["head"].columns + moments["embedding"].columns
    assert np.abs(summed / whole.columns - 1).max() > 0.05


def test_a_row_that_the_sample_never_reached_is_rare_and_no_more():
    moments = estimate(family("llama"), [causal([0, 5, 9, 31, 7])] * 8, batch_tokens=64)
    rows, columns = scales(moments["model.embed_tokens"], 1e-8)
    assert np.isfinite(rows).all() and np.isfinite(columns).all()
    assert rows[100] == rows[200] == rows.max() and rows.max() < 20 * rows[5]


@pytest.mark.parametrize("sequences", [[], [causal([3])]])
def test_a_sample_without_a_loss_gives_every_entry_the_same_finite_scale(sequences):
    for moment in estimate(family("gpt2"), sequences, batch_tokens=64).values():
        rows, columns = scales(moment, 1e-8)
        np.testing.assert_allclose(rows, 1e4)
        np.testing.assert_allclose(columns, 1.0)


def test_moments_survive_their_file_which_has_the_same_bytes_each_time(tmp_path):
    moments = estimate(family("gpt2"), [causal([0, 5, 9])], batch_tokens=64)
    save_moments(moments, tmp_path / "a")
    found = load_moments(str(tmp_path / "a"))
    assert found.keys() == moments.keys()
    for name, moment in moments.items():
        np.testing.assert_array_equal(found[name].rows, moment.rows)
        np.testing.assert_array_equal(found[name].columns, moment.columns)
    save_moments(moments, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
