"""What a ranking is worth over facts, how sure that is, what chance gives, and which losses words cannot explain.

Rankings hold rows of the corpus, best first; a row below 0 is padding. An arm's figures are an array `[facts, 3]` with
the columns METRICS, so that arms are compared over the same facts.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from attribution.bm25 import Tokenize
from attribution.intervals import AT_ONCE, LEVEL
from attribution.metrics import recall_at, reciprocal_rank
from schemas.records import Fact

METRICS = ("mrr", "recall_at_10", "recall_at_100")
RESAMPLES = 2000
SIZES = ((1, "1"), (3, "2-3"), (10, "4-10"))  # the most proponents of a group, and its name; what is beyond is ">10"
LEXICAL = ("neither", "only subject", "only object", "some of both", "all of both")


def per_fact(rankings: Sequence[Sequence[int]], proponents: Sequence[Collection[int]]) -> np.ndarray:
    """`[facts, 3]`: each fact's reciprocal rank, Recall@10 and Recall@100."""
    rows = [[row for row in ranking if row >= 0] for ranking in rankings]
    return np.array(
        [
            [reciprocal_rank(ranking, known), recall_at(ranking, known, 10), recall_at(ranking, known, 100)]
            for ranking, known in zip(rows, proponents, strict=True)
        ]
    )


def chance(num_examples: int, num_proponents: int, depth: int) -> list[float]:
    """The expected METRICS of a random order of which the first `depth` are kept.

    P(no proponent in the first r) = prod_{i<r} (N - m - i) / (N - i), and the best proponent stands at rank r with the
    probability that is lost between r - 1 and r. Of the first k examples k m / N are proponents.
    """
    depth = min(depth, num_examples)
    i = np.arange(depth)
    none = np.cumprod(np.maximum(num_examples - num_proponents - i, 0) / (num_examples - i))
    at = -np.diff(none, prepend=1.0)
    found = [min(k, depth) * num_proponents / num_examples / min(k, num_proponents) for k in (10, 100)]
    return [float((at / (i + 1)).sum()), *found]


def intervals(values: np.ndarray, seed: int) -> np.ndarray:
    """`[3, columns]`: mean, low and high of every column of `values` `[facts, columns]`.

    The bootstrap over facts of `attribution/intervals.py` (percentiles, n - 1 draws of n). All columns share the draws,
    so that a column of differences is a paired comparison, and a hundred columns cost little more than one. Rounded to
    six digits: the last ones depend on how many threads add up.
    """
    count = len(values)
    draw, means = np.random.default_rng(seed), np.empty((RESAMPLES, values.shape[1]))
    step = max(1, AT_ONCE // count)
    for start in range(0, RESAMPLES, step):
        block = means[start : start + step]
        times = draw.multinomial(max(1, count - 1), np.full(count, 1.0 / count), len(block))
        block[:] = times @ values / max(1, count - 1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.round(np.stack([values.mean(axis=0), low, high]), 6)


def compare(arms: dict[str, np.ndarray], first: str, seed: int) -> dict[str, dict]:
    """`arms`: each one's means with intervals; `paired`: `first` less each other one, fact by fact."""
    others = [name for name in arms if name != first]
    table = np.concatenate([*arms.values(), *(arms[first] - arms[name] for name in others)], axis=1)
    told = [
        dict(zip(METRICS, part.T.tolist(), strict=True))
        for part in np.split(intervals(table, seed), len(arms) + len(others), axis=1)
    ]
    found, paired = {}, {}
    for name, row in zip(arms, told, strict=False):
        found[name] = {m: mean for m, (mean, _, _) in row.items()} | {
            f"{m}_interval": ends for m, (_, *ends) in row.items()
        }
    for name, row in zip(others, told[len(arms) :], strict=True):
        paired[f"{first} - {name}"] = {m: {"difference": mean, "interval": ends} for m, (mean, *ends) in row.items()}
    return {"arms": found, "paired": paired}


def size_group(num_proponents: int) -> str:
    return next((name for most, name in SIZES if num_proponents <= most), ">10")


def breakdown(arms: dict[str, np.ndarray], groups: Sequence[str]) -> dict[str, dict]:
    """Of each group of facts, by name: how many facts, and every arm's means."""
    names = np.array(groups)
    return {
        group: {"facts": int((names == group).sum())}
        | {
            arm: dict(zip(METRICS, values[names == group].mean(axis=0).tolist(), strict=True))
            for arm, values in arms.items()
        }
        for group in sorted(set(groups))
    }


def lexical_loss(
    rankings: Sequence[Sequence[int]],
    facts: Sequence[Fact],
    proponents: Sequence[Collection[int]],
    text_of: Callable[[int], str],
    tokenize: Tokenize,
    stop_words: Collection[str],
) -> dict[str, float]:
    """The mean loss 1 - Recall@10, and the share of it by what the missed proponents hold of the fact's words.

    A fact's loss is split evenly over its missed proponents, those not among the first ten. Content words are the
    tokens of `tokenize` that are no stop words (all tokens, where all are stop words); a passage holds a word if the
    very token stands in it. A missed proponent is of one class:

    - `neither`: it holds no content word of the subject and none of the object: no lexical evidence at all;
    - `only subject`, `only object`: at least one of that one, none of the other;
    - `some of both`: at least one of each, but not every one of both; `all of both`: every one of both.

    The shares add up to 1, or are all 0 where nothing is lost.
    """
    lost, stops = dict.fromkeys(LEXICAL, 0.0), set(stop_words)
    for ranking, fact, known in zip(rankings, facts, proponents, strict=True):
        missed = sorted(set(known) - set(ranking[:10]))
        loss = 1.0 - recall_at(ranking, known, 10)
        words = []
        for text in (fact.subject, fact.object):
            tokens = set(tokenize(text))
            words.append(tokens - stops or tokens)
        for row in missed if loss > 0 else ():
            held = set(tokenize(text_of(row)))
            lost[_lexical_class(*(part & held for part in words), all(part <= held for part in words))] += loss / len(
                missed
            )
    total = sum(lost.values())
    return {"loss": total / len(facts)} | {name: value / total if total else 0.0 for name, value in lost.items()}


def _lexical_class(of_subject: set[str], of_object: set[str], everything: bool) -> str:
    if everything:
        return "all of both"
    if of_subject and of_object:
        return "some of both"
    return "only subject" if of_subject else "only object" if of_object else "neither"
