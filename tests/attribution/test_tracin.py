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
        add_checkpoint(scores, weight, q, f, np.arange(5))
    for fact in range(2):
        for row in range(5):
            cosines = [q[fact] @ f[row] / np.sqrt(f[row] @ f[row]) for q, f in zip(queries, features, strict=True)]
            assert scores[fact, row] == pytest.approx(0.75 * cosines[0] + 0.25 * cosines[1], rel=1e-12)


def test_a_row_without_a_gradient_scores_zero_and_length_has_no_say():
    scores = np.zeros((1, 3), dtype=np.float32)
    features = np.array([[2, 0], [400, 0], [0, 0]], dtype=np.float32)
    add_checkpoint(scores, 0.5, np.array([[1, 0]], dtype=np.float32), features, np.arange(3))
    assert scores[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_rows_come_in_any_order_and_others_stay():
    features = np.random.default_rng(3).normal(size=(4, 6))
    whole, parts = np.zeros((2, 4)), np.full((2, 5), 7.0)
    add_checkpoint(whole, 0.3, unit(features[:2]), features, np.arange(4))
    parts[:, :4] = 0.0
    for rows in ([3, 0], [2, 1]):
        add_checkpoint(parts, 0.3, unit(features[:2]), features[rows], np.array(rows))
    np.testing.assert_allclose(parts[:, :4], whole, rtol=1e-12)
    assert (parts[:, 4] == 7.0).all()


def test_an_example_is_its_own_strongest_proponent_and_its_opposite_the_strongest_opponent():
    features = np.random.default_rng(2).normal(size=(6, 8))
    features = np.concatenate([features, -features[:1]])
    scores = np.zeros((1, 7))
    add_checkpoint(scores, 1.0, unit(features[:1]), features, np.arange(7))
    assert scores[0, 0] == pytest.approx(1.0) and scores[0, 6] == pytest.approx(-1.0)
    assert scores.argmax() == 0 and scores.argmin() == 6
