"""Embeddings: the mean of an encoder's last states at unit norm, whatever the batch, the order and the padding."""

import numpy as np
import pytest
import torch

from attribution.embedding import Encoder, embed, load_encoder
from schemas.errors import ConfigError
from tests import tiny

TEXTS = ["Verona", "It rained for 12 days.", "", "The capital of Oz", "日本", "Verona"]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return tiny.save(tiny.bert(), tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(path) -> Encoder:
    return load_encoder(path)


def alone(encoder: Encoder, text: str) -> np.ndarray:
    """A text's vector in float64, in a batch of its own without padding, cut at the limit."""
    tokens = torch.tensor([encoder.tokenizer(text, verbose=False).input_ids[: encoder.max_tokens]])
    states = encoder.model(input_ids=tokens).last_hidden_state[0].double().numpy()
    mean = states.sum(axis=0) / len(states)
    return mean / np.sqrt((mean**2).sum())


@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
def test_vectors_are_mean_states_at_unit_norm_in_the_given_order(encoder, batch_tokens):
    vectors, cut = embed(encoder, TEXTS, batch_tokens)
    np.testing.assert_allclose(vectors, [alone(encoder, text) for text in TEXTS], atol=2e-6)
    assert (vectors.dtype, vectors.shape, cut) == (np.float32, (len(TEXTS), encoder.dim), 0)
    assert np.linalg.norm(vectors[0] - vectors[1]) > 0.01  # they are not all alike


def test_texts_beyond_the_limit_are_cut_there_and_counted(encoder):
    long = "It rained for 12 days in Narnia. " * 10
    vectors, cut = embed(encoder, ["Verona", long, long + "And then?"])
    assert cut == 2
    np.testing.assert_allclose(vectors[:2], [alone(encoder, "Verona"), alone(encoder, long)], atol=2e-6)
    np.testing.assert_array_equal(vectors[1], vectors[2])
    assert len(encoder.tokenizer(long, verbose=False).input_ids) > encoder.max_tokens  # the cut left no trace


def test_no_texts_give_no_vectors(encoder):
    vectors, cut = embed(encoder, [])
    assert (vectors.shape, cut) == ((0, encoder.dim), 0)


def test_progress_counts_texts_and_their_tokens_without_padding(encoder):
    counts: list[tuple[int, int]] = []
    embed(encoder, TEXTS, 20, lambda texts, tokens: counts.append((texts, tokens)))
    assert len(counts) > 1
    tokens = sum(len(encoder.tokenizer(text).input_ids) for text in TEXTS)
    assert np.sum(counts, axis=0).tolist() == [len(TEXTS), tokens]


def test_a_shorter_cut_and_padding_shipped_with_the_tokenizer_are_lifted(tmp_path):
    tokenizer = tiny.make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=12)
    tiny.bert().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    shipped = load_encoder(str(tmp_path))
    vectors, cut = embed(shipped, TEXTS)
    np.testing.assert_allclose(vectors, [alone(shipped, text) for text in TEXTS], atol=2e-6)
    assert (shipped.max_tokens, cut) == (tiny.CONTEXT, 0)


def test_a_vector_that_is_not_finite_is_refused(path):
    broken = load_encoder(path)
    broken.model.get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(FloatingPointError, match=f"encoder {path}: a vector is not finite"):
        embed(broken, ["Verona"])


def test_a_missing_encoder_and_one_without_tokenizer_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model /no/encoder: expected .*; found no such folder"):
        load_encoder("/no/encoder")
    tiny.bert().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="found no tokenizer in the folder"):
        load_encoder(str(tmp_path))


def test_encoder_is_frozen_and_in_evaluation_mode(encoder):
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert encoder.dim == 16
