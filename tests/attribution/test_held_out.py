"""Held-out loss against the library's own, one sequence at a time."""

import numpy as np
import pytest
import torch

from attribution import held_out
from attribution.checkpoint import load_checkpoint
from attribution.held_out import losses, num_told
from attribution.sequences import Sequence, encode_example
from tests import tiny

PROMPTED = '{"completion": " is Verona.", "prompt": "The capital of Oz"}'


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_losses_are_those_of_the_model_on_each_text_alone_whatever_the_batch(name, tiny_paths, monkeypatch):
    checkpoint = load_checkpoint(tiny_paths[name])
    sequences = [encode_example(checkpoint, text) for text in tiny.TEXTS]
    sequences.append(encode_example(checkpoint, "The capital of Oz is Verona.", PROMPTED))
    expected, tokens = [], []
    for sequence in sequences:
        logits = checkpoint.model(input_ids=torch.tensor([sequence.tokens])).logits[0].double()
        told = [t for t, label in enumerate(sequence.labels) if label != -100]
        expected.append(sum(float(logits[t].logsumexp(0) - logits[t, sequence.labels[t]]) for t in told))
        tokens.append(len(told))
    assert num_told(sequences).tolist() == tokens and len(set(tokens)) > 3
    for batch_tokens in (4096, 40, 1):
        monkeypatch.setattr(held_out, "BATCH_TOKENS", batch_tokens)
        np.testing.assert_allclose(losses(checkpoint, sequences), expected, rtol=1e-5)


def test_a_completions_prompt_costs_nothing(tiny_paths):
    checkpoint = load_checkpoint(tiny_paths["gpt2"])
    whole = encode_example(checkpoint, "The capital of Oz is Verona.")
    completion = encode_example(checkpoint, "The capital of Oz is Verona.", PROMPTED)
    assert num_told([completion])[0] < num_told([whole])[0]
    assert 0 < losses(checkpoint, [completion])[0] < losses(checkpoint, [whole])[0]


def test_a_sequence_without_a_loss_has_none(tiny_paths):
    checkpoint = load_checkpoint(tiny_paths["gpt2"])
    silent = Sequence([0, 5], [-100, -100])
    assert losses(checkpoint, [silent, encode_example(checkpoint, "It rained.")])[0] == 0.0
    assert num_told([silent]).tolist() == [0]
