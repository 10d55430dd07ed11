"""top_k equals the full sort, ties and cut included, so that the best of the shards are the best of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.top_k import least_score, top_k

scores_strategy = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5 + 1e-12, 2.0, 1e300]), max_size=40)


def full_sort(scores: list[float], ties: list[int], k: int, above: float = -np.inf) -> list[int]:
    rows = [i for i in range(len(scores)) if scores[i] > above]
    return sorted(rows, key=lambda i: (-scores[i], ties[i]))[: max(k, 0)]


@settings(max_examples=150, deadline=None)
@given(scores_strategy, st.integers(-1, 45), st.sampled_from([-np.inf, 0.0, 0.5]), st.randoms(use_true_random=False))
def test_equals_a_full_sort(scores, k, above, random):
    ties = random.sample(range(1000), len(scores))
    found = top_k(np.array(scores), np.array(ties, dtype=np.int64), k, above)
    assert found.tolist() == full_sort(scores, ties, k, above)


@settings(max_examples=80, deadline=None)
@given(scores_strategy, st.integers(1, 10), st.integers(1, 7), st.randoms(use_true_random=False))
def test_best_of_the_shards_are_the_best_of_the_whole(scores, k, size, random):
    whole, ties = np.array(scores), np.array(random.sample(range(1000), len(scores)), dtype=np.int64)
    kept = [s + top_k(whole[s : s + size], ties[s : s + size], k) for s in range(0, len(whole), size)]
    merged = np.concatenate([*kept, np.empty(0, np.int64)]).astype(np.int64)
    best = merged[top_k(whole[merged], ties[merged], k)]
    assert best.tolist() == top_k(whole, ties, k).tolist()


def test_ties_stand_in_their_order_at_the_cut_as_well():
    scores, ties = np.array([1.0, 5.0, 1.0, 1.0]), np.array([3, 0, 1, 2])
    assert top_k(scores, ties, 3).tolist() == [1, 2, 3]
    assert top_k(scores, ties[::-1].copy(), 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize("k", [0, -3])
def test_no_positions_for_k_of_zero_or_less(k):
    assert top_k(np.array([1.0]), np.array([0]), k).tolist() == []


def test_k_beyond_the_rows_gives_all_and_an_empty_row_none():
    assert top_k(np.array([1.0, 2.0]), np.array([0, 1]), 9).tolist() == [1, 0]
    assert top_k(np.empty(0), np.empty(0, np.int64), 9).tolist() == []


def test_above_is_strict():
    assert top_k(np.array([0.0, 1.0, 0.0]), np.arange(3), 2, above=0.0).tolist() == [1]


def test_a_passage_without_a_shared_word_is_no_bm25_candidate_but_any_cosine_makes_one():
    scores = np.array([0.0, -0.5, 1.0])
    assert top_k(scores, np.arange(3), 3, least_score("bm25")).tolist() == [2]
    assert top_k(scores, np.arange(3), 3, least_score("dense")).tolist() == [2, 0, 1]
    assert top_k(scores, np.arange(3), 3, least_score("gradient")).tolist() == [2, 0, 1]
