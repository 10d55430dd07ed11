"""The best k of a row of scores, ties broken by a given order: exact, so that shards merge to the unsharded answer."""

import numpy as np

from attribution.fusion import HOP, NAMES


def top_k(scores: np.ndarray, tie_order: np.ndarray, k: int, above: float = -np.inf) -> np.ndarray:
    """Positions of the k highest of `scores` `[rows]` that are greater than `above`, best first.

    Equal scores stand in the order of `tie_order` `[rows]` (smaller first), at the cut as well.
    """
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    candidates = np.arange(len(scores))
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold)
    candidates = candidates[scores[candidates] > above]
    order = np.lexsort((tie_order[candidates], -scores[candidates]))
    return candidates[order[:k]]


def least_score(signal: str) -> float:
    """What a score must exceed to make a candidate: a passage that shares no word is no BM25 candidate."""
    return 0.0 if signal in ("bm25", NAMES, HOP) else -np.inf
