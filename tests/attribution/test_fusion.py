"""Fusion: min-max by hand, and weights that are fitted to find a pseudo-fact's own passage."""

import numpy as np
import pytest

from attribution.fusion import GRID, fit_weights, fuse, normalise, weight_grid


def test_each_column_is_mapped_to_zero_and_one_by_its_own_extremes():
    scores = np.array([[2.0, -1.0], [4.0, 0.0], [7.0, -3.0]])
    expected = [
        [(2 - 2) / (7 - 2), (-1 - -3) / (0 - -3)],
        [(4 - 2) / (7 - 2), (0 - -3) / (0 - -3)],
        [(7 - 2) / (7 - 2), (-3 - -3) / (0 - -3)],
    ]
    np.testing.assert_allclose(normalise(scores), expected, rtol=1e-15)


def test_a_constant_column_tells_nothing():
    assert normalise(np.array([[5.0, 1.0], [5.0, 2.0]])).tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert normalise(np.array([[5.0, 1.0]])).tolist() == [[0.0, 0.0]]


def test_no_candidates_fuse_to_no_scores():
    assert fuse(np.empty((0, 2)), np.array([0.5, 0.5])).shape == (0,)


def test_fused_score_is_the_weighted_sum_of_the_normalised_ones():
    scores = np.array([[2.0, -1.0], [4.0, 0.0], [7.0, -3.0]])
    expected = [0.7 * 0 + 0.3 * 2 / 3, 0.7 * 2 / 5 + 0.3 * 1, 0.7 * 1 + 0.3 * 0]
    np.testing.assert_allclose(fuse(scores, np.array([0.7, 0.3])), expected, rtol=1e-15)


def test_fusion_ignores_a_signals_unit_and_offset():
    scores = np.random.default_rng(0).normal(size=(20, 3))
    weights = np.array([0.5, 0.3, 0.2])
    moved = scores * np.array([100.0, 0.01, 3.0]) + np.array([5.0, -7.0, 0.0])
    np.testing.assert_allclose(fuse(moved, weights), fuse(scores, weights), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("signals", "rows"), [(1, 1), (2, GRID - 1), (3, (GRID - 1) * (GRID - 2) // 2)])
def test_grid_holds_every_weighting_once_without_a_zero(signals, rows):
    grid = weight_grid(signals)
    assert len(np.unique(grid, axis=0)) == len(grid) == rows
    assert (grid > 0).all()
    np.testing.assert_allclose(grid.sum(axis=1), 1.0, rtol=1e-12)


def two_candidates(signs: list[tuple[int, int]]) -> tuple[list[np.ndarray], list[int], list[np.ndarray]]:
    """Facts whose own passage (position 0) each of two signals puts above (+1) or below (-1) its one rival."""
    candidates = [np.array([[float(a), float(b)], [0.0, 0.0]]) for a, b in signs]
    return candidates, [0] * len(signs), [np.array([True, True])] * len(signs)


def test_weights_go_to_the_signal_that_finds_the_passage_though_the_other_wins_ties():
    weights, record = fit_weights(*two_candidates([(-1, 1)] * 9 + [(1, -1)]))
    # Best is any weighting with the second above 1/2; among equals the strong (first) signal has the most: 9/20.
    np.testing.assert_allclose(weights, [0.45, 0.55])
    mrr = (9 * 1 + 1 * 1 / 2) / 10
    assert record == {"mrr": pytest.approx(mrr), "mrr_best": pytest.approx(mrr), "facts": 10}


def test_a_difference_within_one_standard_error_goes_to_the_strong_signal():
    facts = two_candidates([(-1, 1)] * 5 + [(1, -1)] * 4)
    weights, record = fit_weights(*facts)
    np.testing.assert_allclose(weights, [0.95, 0.05])
    assert record["mrr"] == pytest.approx((5 * 1 / 2 + 4 * 1) / 9)
    assert record["mrr_best"] == pytest.approx((5 * 1 + 4 * 1 / 2) / 9)
    np.testing.assert_allclose(fit_weights(*facts, strong=1)[0], [0.05, 0.95])


def test_where_all_weightings_are_equal_the_strong_signal_has_all_but_a_grid_step():
    facts = two_candidates([(1, 1)] * 3)
    np.testing.assert_allclose(fit_weights(*facts)[0], [0.95, 0.05])
    np.testing.assert_allclose(fit_weights(*facts, strong=1)[0], [0.05, 0.95])


def test_one_signal_has_the_weight_one():
    weights, record = fit_weights([np.array([[2.0], [1.0]])], [0], [np.array([True, True])])
    assert (weights.tolist(), record["mrr"]) == ([1.0], 1.0)


def fit_mrr(scores: list[float], label: int, competing: list[bool]) -> float:
    column = np.array(scores)[:, None]
    return fit_weights([column], [label], [np.array(competing)])[1]["mrr"]


def test_reciprocal_rank_counts_the_competing_that_rank_higher():
    assert fit_mrr([3.0, 4.0, 5.0, 1.0], 0, [True] * 4) == pytest.approx(1 / 3)
    assert fit_mrr([3.0, 4.0, 5.0, 1.0], 0, [True, False, True, True]) == pytest.approx(1 / 2)
    assert fit_mrr([3.0, 4.0, 5.0, 1.0], 0, [False] * 4) == 1.0


def test_a_tie_counts_against_the_own_passage_which_never_competes_with_itself():
    assert fit_mrr([3.0, 3.0, 3.0, 1.0], 1, [True] * 4) == pytest.approx(1 / 3)
    assert fit_mrr([3.0, 1.0], 0, [True, True]) == 1.0


def test_a_passage_that_no_signal_retrieved_counts_zero():
    assert fit_mrr([3.0, 1.0], -1, [True, True]) == 0.0
    candidates, _, competing = two_candidates([(1, 1)] * 4)
    assert fit_weights(candidates, [0, -1, 0, -1], competing)[1]["mrr"] == pytest.approx(2 / 4)
