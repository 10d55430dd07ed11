"""Fusion: one scale for all queries, the weighted sum by hand, and weights that sum to 1."""

import numpy as np
import pytest

from attribution.fusion import WEIGHTS, fusion_of, scaled


def test_each_signal_has_its_own_scale_and_the_match_comes_last():
    scores = np.array([[6.0, 0.5, -0.25], [0.0, -0.1, 0.125]])
    found = scaled(["bm25", "dense", "gradient"], scores, 8.0, np.array([1.0, 0.25]))
    np.testing.assert_allclose(found, [[0.75, 0.5, 0.0, 1.0], [0.0, 0.0, 0.125, 0.25]], rtol=1e-15)


def test_the_scale_does_not_depend_on_the_other_candidates():
    scores, matches = np.random.default_rng(0).random((6, 2)), np.linspace(0, 1, 6)
    whole = scaled(["dense", "bm25"], scores, 3.0, matches)
    alone = [scaled(["dense", "bm25"], scores[i : i + 1], 3.0, matches[i : i + 1])[0] for i in range(6)]
    np.testing.assert_array_equal(whole, alone)


def test_a_query_without_a_word_that_counts_and_no_candidates():
    assert scaled(["bm25"], np.zeros((2, 1)), 0.0, np.zeros(2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert scaled(["bm25", "dense"], np.empty((0, 2)), 1.0, np.empty(0)).shape == (0, 3)


@pytest.mark.parametrize("signals", [["bm25"], ["bm25", "dense"], ["bm25", "dense", "gradient"]])
def test_the_weights_sum_to_one_and_keep_their_proportions(signals):
    found = fusion_of(signals)
    assert found["signals"] == [*signals, "match"] and sum(found["weights"]) == pytest.approx(1, abs=1e-12)
    told = dict(zip(found["signals"], found["weights"], strict=True))
    assert all(told[a] / told["bm25"] == pytest.approx(WEIGHTS[a] / WEIGHTS["bm25"]) for a in told)
