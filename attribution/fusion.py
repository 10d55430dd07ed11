"""The fused score: a weighted sum of the signals, each normalised per query, and how the weights are fitted.

Per fact and signal, the candidates' scores are mapped linearly to [0, 1] (min-max over the candidates). The weights sum
to 1, so the fused score lies in [0, 1] too, and none is 0: where words do not help, the other signals still rank.

They are fitted on pseudo-facts: facts cut from the corpus itself, each with the passage that it was cut from as its one
known proponent. Plain reciprocal rank fusion throws a strong signal away when it is joined with a weak one (MRR 0.977
to 0.45 when tried), so it is not offered here.
"""

import itertools

import numpy as np

GRID = 20  # weights are multiples of 1/20


def normalise(scores: np.ndarray) -> np.ndarray:
    """`[candidates, signals]` with every column mapped to [0, 1]; a constant column tells nothing and becomes 0."""
    if not len(scores):
        return scores
    low, high = scores.min(axis=0), scores.max(axis=0)
    return np.where(high > low, (scores - low) / np.where(high > low, high - low, 1.0), 0.0)


def fuse(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fused scores `[candidates]` of raw `scores` `[candidates, signals]`."""
    return normalise(scores) @ weights


def weight_grid(num_signals: int) -> np.ndarray:
    """All weightings on the grid, `[weightings, signals]`; each row sums to 1 and has no zero."""
    rows = [w for w in itertools.product(range(1, GRID + 1), repeat=num_signals) if sum(w) == GRID]
    return np.array(rows, dtype=np.float64) / GRID


def fit_weights(
    candidates: list[np.ndarray], labels: list[int], competing: list[np.ndarray], strong: int = 0
) -> tuple[np.ndarray, dict]:
    """(weights `[signals]`, the fit's record) that find the pseudo-facts' own passages best.

    Args:
        candidates: per pseudo-fact the raw scores `[candidates, signals]`.
        labels: per pseudo-fact the position of its own passage, -1 where no signal retrieved it.
        competing: per pseudo-fact `[candidates]` booleans: which passages count against it when they rank higher. One
            that holds what was hidden may state the same fact in other words; counted against, it would teach the
            weights to prefer the query's wording (with it, a corpus of five wordings a fact gave gradients 0.5).
        strong: the signal that wins a tie, for weights whose MRR differs by less than one standard error of the best.
            A text signal that is right nearly always leaves the others nothing to prove on text cut from the corpus.

    The objective is the MRR of the own passage; ties within a ranking count against it.
    """
    grid = weight_grid(candidates[0].shape[1])
    reciprocal = np.zeros((len(grid), len(candidates)))
    for column, (scores, label, counted) in enumerate(zip(candidates, labels, competing, strict=True)):
        if label >= 0:
            fused = normalise(scores) @ grid.T
            others = counted & (np.arange(len(scores)) != label)
            reciprocal[:, column] = 1.0 / (1 + (fused[others] >= fused[label] - 1e-12).sum(axis=0))
    mrr = reciprocal.mean(axis=1)
    best = int(np.argmax(mrr))
    # Paired: the standard error of the difference to the best, fact by fact.
    error = (reciprocal - reciprocal[best]).std(axis=1) / np.sqrt(len(candidates))
    as_good = np.flatnonzero(mrr >= mrr[best] - error)
    chosen = int(as_good[np.lexsort((-mrr[as_good], -grid[as_good, strong]))[0]])
    return grid[chosen], {"mrr": float(mrr[chosen]), "mrr_best": float(mrr[best]), "facts": len(labels)}
