"""The exact product against whole gradients: every term of tied weights, every token's share, any batch."""

import numpy as np
import pytest

from attribution.checkpoint import load_checkpoint
from attribution.exact import ExactScorer
from attribution.gradients import FeatureExtractor
from attribution.layers import tracked_layers
from attribution.projection import Projection
from attribution.sequences import Sequence, causal
from tests import tiny

WHOLE = Projection(dim=10**6)
DRAWN = np.random.default_rng(0)
EXAMPLES = [causal(DRAWN.integers(2, tiny.VOCABULARY, size).tolist()) for size in (5, 9, 9, 14, 3)]
QUERIES = [causal([0, 80, 81, 82, 83, 84], 4), causal([0, 7, 9, 4], 2)]


def scales_of(checkpoint) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    drawn = np.random.default_rng(1)
    layers, _ = tracked_layers(checkpoint.model, checkpoint.trainable)
    return {layer.name: tuple(drawn.random(size) + 0.1 for size in layer.shape) for layer in layers}


@pytest.fixture(params=["gpt2", "llama"])
def checkpoint(request, tiny_paths):
    """In float64: gpt2 ties its head to its embedding, llama does not."""
    loaded = load_checkpoint(tiny_paths[request.param])
    loaded.model.double()
    return loaded


def extractor(checkpoint, corrected: bool, batch_tokens: int = 2048, **options) -> FeatureExtractor:
    scales = scales_of(checkpoint) if corrected else None
    return FeatureExtractor(checkpoint, WHOLE, batch_tokens, scales=scales, **options)


def cosines(made: FeatureExtractor) -> np.ndarray:
    """Of whole gradients as vectors."""
    queries, examples = made.features(QUERIES), made.features(EXAMPLES)
    return (queries @ examples.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(examples, axis=1)


def exact(made: FeatureExtractor, examples: list[Sequence] = EXAMPLES) -> np.ndarray:
    found = np.full((len(QUERIES), len(examples)), np.nan)
    for position, shares in ExactScorer(made).token_scores(QUERIES, examples):
        assert shares.shape == (len(QUERIES), len(examples[position].tokens))
        found[:, position] = shares.sum(axis=1)
    return found


@pytest.mark.parametrize("corrected", [False, True])
def test_the_tokens_shares_sum_to_the_cosine_of_the_whole_gradients(checkpoint, corrected):
    made = extractor(checkpoint, corrected)
    np.testing.assert_allclose(exact(made), cosines(made), atol=1e-12)


@pytest.mark.parametrize("unit_labels", [False, True])
def test_with_a_norm_a_layer_it_is_the_mean_of_the_layers_cosines(checkpoint, unit_labels):
    made = extractor(checkpoint, True, norm_a_layer=True, unit_labels=unit_labels)
    plain = extractor(checkpoint, True, unit_labels=unit_labels)
    layers = []
    for columns in plain.columns.values():
        queries, examples = plain.features(QUERIES)[:, columns], plain.features(EXAMPLES)[:, columns]
        norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(examples, axis=1)
        layers.append(queries @ examples.T / norms)
    np.testing.assert_allclose(exact(made), np.mean(layers, axis=0), atol=1e-12)
    np.testing.assert_allclose(made.features(QUERIES) @ made.features(EXAMPLES).T, np.mean(layers, axis=0), atol=1e-12)


def test_a_matrix_scales_a_side_as_its_diagonal_does(checkpoint):
    diagonal = extractor(checkpoint, True, blocks_only=True)
    matrices = {name: tuple(np.diag(side) for side in pair) for name, pair in scales_of(checkpoint).items()}
    made = FeatureExtractor(checkpoint, WHOLE, scales=matrices, blocks_only=True)
    np.testing.assert_allclose(made.features(EXAMPLES), diagonal.features(EXAMPLES), rtol=1e-12)
    np.testing.assert_allclose(exact(made), exact(diagonal), atol=1e-12)


def test_the_correction_changes_the_cosine(checkpoint):
    plain, corrected = exact(extractor(checkpoint, False)), exact(extractor(checkpoint, True))
    assert np.abs(plain - corrected).max() > 1e-3


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_batches_have_no_say(checkpoint, batch_tokens):
    whole = exact(extractor(checkpoint, True))
    np.testing.assert_allclose(exact(extractor(checkpoint, True, batch_tokens)), whole, atol=1e-12)


def test_a_text_is_its_own_strongest_proponent_and_has_the_cosine_one(checkpoint):
    made = extractor(checkpoint, True)
    scorer = ExactScorer(made)
    found = {position: shares.sum(axis=1) for position, shares in scorer.token_scores(EXAMPLES, EXAMPLES)}
    scores = np.stack([found[i] for i in range(len(EXAMPLES))], axis=1)
    np.testing.assert_allclose(np.diag(scores), 1.0, atol=1e-12)
    assert (scores.argmax(axis=1) == np.arange(len(EXAMPLES))).all()


def test_an_example_without_a_gradient_has_no_shares(checkpoint):
    found = exact(extractor(checkpoint, False), [Sequence([], []), EXAMPLES[0], causal([5])])
    assert found[:, [0, 2]].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert (found[:, 1] != 0).all()


def test_the_projected_cosine_estimates_the_exact_one(checkpoint):
    """One draw of 12 x 12 a layer: far from exact, and near it on the average over seeds."""
    expected, found = exact(extractor(checkpoint, False)), []
    for seed in range(100):
        made = FeatureExtractor(checkpoint, Projection(dim=12, seed=seed))
        queries, examples = made.features(QUERIES), made.features(EXAMPLES)
        found.append(queries @ examples.T)
    whole = extractor(checkpoint, False)
    norms = np.linalg.norm(whole.features(QUERIES), axis=1)[:, None] * np.linalg.norm(whole.features(EXAMPLES), axis=1)
    mean, error = np.mean(found, axis=0) / norms, np.std(found, axis=0) / norms / 10
    assert (np.abs(mean - expected) < 4 * error + 1e-12).all()  # 20 values: at 3 errors one run in 20 fails by chance
