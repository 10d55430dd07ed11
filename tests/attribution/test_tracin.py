"""TracIn: weights that sum to 1, and a score that is the weighted sum of cosines over the checkpoints."""

import numpy as np
import pytest

from attribution.tracin import add_checkpoint, checkpoint_weights, unit


def test_weights_are_the_learning_rates_shares():
    weights, equal = checkpoint_weights([0.3, 0.2, 0.1])
    assert weights == pytest.approx([0.3 / 0.6, 0.2 / 0.6, 0.1 / 0.6])
    assert equal is False
    assert checkpoint_weights([5e-4]) == ([1.0], False)


@pytest.mark.parametrize("rates", [[0.3, None], [None, None]])
def test_weights_are_equal_and_said_to_be_where_a_rate_is_not_recorded(rates):
    assert checkpoint_weights(rates) == ([1 / 2, 1 / 2], True)


def test_unit_rows_have_norm_one_and_a_zero_row_stays_zero():
    features = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    found = unit(features)
    np.testing.assert_allclose(found, [[3 / 5, 4 / 5], [0, 0]], rtol=1e-7)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(unit(features, np.array([5.0, 0.0])), found)


def test_score_is_the_weighted_sum_of_cosines_over_checkpoints():
    rng = np.random.default_rng(0)
    queries = [unit(rng.normal(size=(2, 4))) for _ in range(2)]
    features = [rng.normal(size=(5, 4)) * np.array([[1], [10], [0.1], [3], [1]]) for _ in range(2)]
    scores = np.zeros((2, 5))
    for weight, q, f in zip((0.75, 0.25), queries, features, strict=True):
        add_checkpoint(scores, weight, q, f, np.linalg.norm(f, axis=1))
    for fact in range(2):
        for row in range(5):
            cosines = [q[fact] @ f[row] / np.sqrt(f[row] @ f[row]) for q, f in zip(queries, features, strict=True)]
            assert scores[fact, row] == pytest.approx(0.75 * cosines[0] + 0.25 * cosines[1], rel=1e-12)


@pytest.mark.parametrize("block", [1, 3, 7, 8])
def test_blocks_of_any_size_give_the_same_scores(block):
    rng = np.random.default_rng(1)
    queries, features = unit(rng.normal(size=(3, 6))), rng.normal(size=(7, 6))
    norms = np.linalg.norm(features, axis=1)
    whole, blocked = np.zeros((3, 7)), np.zeros((3, 7))
    add_checkpoint(whole, 1.0, queries, features, norms)
    add_checkpoint(blocked, 1.0, queries, features, norms, block=block)
    np.testing.assert_allclose(blocked, whole, rtol=1e-12)
    np.testing.assert_allclose(whole, queries @ (features / norms[:, None]).T, rtol=1e-12)


def test_rows_are_divided_by_the_norms_that_are_stored_with_them():
    scores = np.zeros((1, 3), dtype=np.float32)
    features = np.array([[2, 0], [4, 0], [0, 0]], dtype=np.float32)
    add_checkpoint(scores, 0.5, np.array([[1, 0]], dtype=np.float32), features, np.array([8.0, 5.0, 0.0]), block=2)
    assert scores[0].tolist() == pytest.approx([0.5 * 2 / 8, 0.5 * 4 / 5, 0.0])


def test_an_example_is_its_own_strongest_proponent_and_its_opposite_the_strongest_opponent():
    features = np.random.default_rng(2).normal(size=(6, 8))
    features = np.concatenate([features, -features[:1]])
    scores = np.zeros((1, 7))
    add_checkpoint(scores, 1.0, unit(features[:1]), features, np.linalg.norm(features, axis=1))
    assert scores[0, 0] == pytest.approx(1.0) and scores[0, 6] == pytest.approx(-1.0)
    assert scores.argmax() == 0 and scores.argmin() == 6
