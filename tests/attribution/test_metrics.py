"""Metrics, with the expected value written as arithmetic."""

import pytest

from attribution.metrics import recall_at, reciprocal_rank

RANKING = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("proponents", "expected"),
    [(["a"], 1 / 1), (["c"], 1 / 3), (["d", "b"], 1 / 2), (["x"], 0.0), ([], 0.0), (["x", "d"], 1 / 4)],
)
def test_reciprocal_rank_is_that_of_the_best_ranked_proponent(proponents, expected):
    assert reciprocal_rank(RANKING, proponents) == expected
    assert reciprocal_rank([], proponents) == 0.0


@pytest.mark.parametrize(
    ("proponents", "k", "expected"),
    [
        (["a", "x"], 1, 1 / min(1, 2)),
        (["a", "c"], 2, 1 / min(2, 2)),
        (["a", "c"], 3, 2 / min(3, 2)),
        (["c"], 2, 0 / min(2, 1)),
        (["a", "b", "x"], 10, 2 / min(10, 3)),
        (RANKING, 4, 4 / 4),
    ],
)
def test_recall_is_over_what_k_can_hold(proponents, k, expected):
    assert recall_at(RANKING, proponents, k) == expected


def test_an_example_ranked_twice_is_found_once():
    assert recall_at(["a", "a"], ["a", "b"], 2) == 1 / 2
