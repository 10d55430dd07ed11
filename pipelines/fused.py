"""The fused order of a fact's candidates, which are read for it: their words tell how far each holds both its sides.

candidates of `merge_block` + their texts -> what speaks for each, on one scale -> order, scores
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.fusion import scaled
from attribution.match import Words, match
from pipelines.search import Candidates, Query, combine, statistics_of, tokenizer_of
from schemas.facts import asked, sides_of, text_query
from schemas.records import Fact


@dataclass(frozen=True)
class Fused:
    """A fact's candidates best first: their positions `order`, and by position `scores`, `columns` (scaled signals,
    the match last) and `coverage`, the share of the query's word weight that the passage holds."""

    order: np.ndarray
    scores: np.ndarray
    columns: np.ndarray
    coverage: list[float]


class Fuser:
    """Of one index; candidates stand in the order of their ids, which breaks ties."""

    def __init__(self, query: Query):
        self.query, self.statistics, self.tokenize = query, statistics_of(query), tokenizer_of(query)
        self.names, self.weights = query.details["fusion"]["signals"], np.array(query.details["fusion"]["weights"])

    def fuse(self, fact: Fact, candidates: Candidates, passages: Mapping[int, dict[str, Any]]) -> Fused:
        idf = self.statistics.idf
        variants = asked(fact)
        words = [self.tokenize(text_query(variant, self.query.text_query)) for variant in variants]
        whole = [sum(map(idf, query)) for query in words]
        most = max(whole) if fact.combine == "max" else sum(whole) / len(whole)
        sides = [
            [(self.tokenize(a), self.tokenize(b)) for a, b in sides_of(variant, self.query.text_query)]
            for variant in variants
        ]
        tokens = [self.tokenize(passages[int(i)]["text"]) for i in candidates.passages]
        held = [Words(of_passage) for of_passage in tokens]
        matches = np.array([[match(names, of_passage, idf) for of_passage in held] for names in sides])
        columns = scaled(self.query.signals, candidates.scores, most, combine(matches, [fact])[0])
        scores = columns @ self.weights
        coverage = [max(self.statistics.coverage(query, of_passage) for query in words) for of_passage in tokens]
        return Fused(np.argsort(-scores, kind="stable"), scores, columns, coverage)
