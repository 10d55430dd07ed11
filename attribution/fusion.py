"""The fused score of a passage: a weighted sum of what speaks for it, each on one scale for all queries.

    bm25      its share of the most that a passage can have: the sum of idf over the query's words
    match     how far it holds both sides of the fact (attribution/match.py)
    names     what it has by other names of the two sides beyond that, as a share of both (attribution/names.py)
    hop       how the less near of the two sides reaches it: 1 where it holds that side itself, most of the weight of
              another name of it that it holds, or its highest cosine to the passages that hold that side best
    dense     the cosine, gradient likewise; 0 where it is negative

No scale depends on the other candidates, so a signal that finds nothing says little: where no passage has the query's
words the shares of BM25 are small, and the others decide. Mapped to [0, 1] by the candidates' own extremes, as they
were once, the best of bad words weighed as much as the best of good ones. Reciprocal rank fusion, which knows ranks
alone, throws a strong signal away when it is joined with a weak one: MRR 0.89 for 0.96 (`python -m bench.quality A1`).

WEIGHTS are measured on facts of 10 relations of T-REx and checked on those of 9 others; that of the gradient on facts
that an LM answers, where it makes no difference up to 0.6 (docs/log.md). Facts cut from the corpus, which they
were fitted on, cannot tell weightings apart: such a fact's own passage has its words by construction (docs/log.md).
"""

from collections.abc import Mapping, Sequence

import numpy as np

MATCH, NAMES, HOP = "match", "names", "hop"
OWN = {"bm25": 1.0, MATCH: 0.3}  # what words say
WEIGHTS = OWN | {NAMES: sum(OWN.values()), HOP: 1.0, "dense": 0.3, "gradient": 0.3}


def fusion_of(signals: Sequence[str]) -> dict[str, list]:
    """What is summed for an index of these `signals`, and its `weights`: a passage that has all of everything scores 1.

    By its own words and by other names it can have but one share of both, so that those of NAMES are not added.
    """
    names = [*signals, MATCH, NAMES, HOP]
    reached = sum(WEIGHTS[name] for name in names if name != NAMES)
    return {"signals": names, "weights": [WEIGHTS[name] / reached for name in names]}


def scaled(parts: Mapping[str, np.ndarray], most: float, by_names: np.ndarray) -> dict[str, np.ndarray]:
    """Each part `[candidates]` from 0 to 1, of raw signals and the match; NAMES is made of the evidence `by_names`.

    `most` is the sum of idf over the query's words.
    """
    shares = dict(parts) | {"bm25": parts["bm25"] / (most or 1.0)}
    found = {name: np.clip(values, 0.0, 1.0) for name, values in shares.items()}
    own = sum(weight * found[name] for name, weight in OWN.items()) / sum(OWN.values())
    return found | {NAMES: np.clip(by_names - own, 0.0, 1.0)}
