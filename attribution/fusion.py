"""The fused score of a passage: a weighted sum of what speaks for it, each on one scale for all queries.

    bm25      its share of the most that a passage can have: the sum of idf over the query's words
    match     how far it holds both sides of the fact (attribution/match.py)
    dense     the cosine, gradient likewise; 0 where it is negative

No scale depends on the other candidates, so a signal that finds nothing says little: where no passage has the query's
words the shares of BM25 are small, and the others decide. Mapped to [0, 1] by the candidates' own extremes, as they
were once, the best of bad words weighed as much as the best of good ones. Reciprocal rank fusion, which knows ranks
alone, throws a strong signal away when it is joined with a weak one: MRR 0.89 for 0.96 (`python -m bench.quality A1`).

WEIGHTS are measured on facts of 10 relations of T-REx and checked on those of 9 others; that of the gradient is not
measured yet (docs/method.md). Facts cut from the corpus, which they were fitted on, cannot tell weightings apart: such
a fact's own passage has its words by construction (docs/log.md).
"""

from collections.abc import Sequence

import numpy as np

MATCH = "match"
WEIGHTS = {"bm25": 1.0, MATCH: 0.3, "dense": 0.3, "gradient": 0.3}


def fusion_of(signals: Sequence[str]) -> dict[str, list]:
    """The `signals` of an index and the match, and their `weights`, which sum to 1."""
    names = [*signals, MATCH]
    return {"signals": names, "weights": [WEIGHTS[name] / sum(WEIGHTS[n] for n in names) for name in names]}


def scaled(signals: Sequence[str], scores: np.ndarray, most: float, matches: np.ndarray) -> np.ndarray:
    """`[candidates, signals + 1]` from 0 to 1, of raw `scores` `[candidates, signals]`; the match is the last column.

    `most` is the sum of idf over the query's words.
    """
    columns = [scores[:, i] / (most or 1.0) if name == "bm25" else scores[:, i] for i, name in enumerate(signals)]
    return np.clip(np.column_stack([*columns, matches]), 0.0, 1.0)
