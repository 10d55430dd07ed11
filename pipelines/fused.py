"""The fused order of a fact's candidates, which are read for it: their words tell how far each holds both its sides.

candidates of `merge_block` + their texts -> what speaks for each, on one scale -> order, scores
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.fusion import MATCH, NAMES, OWN, scaled
from attribution.match import Words, match
from attribution.names import evidence, side
from pipelines.names import Followed, groups_of
from pipelines.query import Candidates, Query, combine, statistics_of, tokenizer_of
from schemas.facts import asked, sides_of, text_query
from schemas.records import Fact


@dataclass(frozen=True)
class Fused:
    """A fact's candidates best first: their positions `order`, and by position the others.

    `columns` are what is summed, in the order of the index' fusion; `coverage` is the share of the query's word weight
    that the passage holds; `names` are other names of the fact's sides by which it has more than by their own.
    """

    order: np.ndarray
    scores: np.ndarray
    columns: np.ndarray
    coverage: list[float]
    names: list[tuple[str, ...]]


class Fuser:
    """Of one index; candidates stand in the order of their ids, which breaks ties. `followed` is by side."""

    def __init__(self, query: Query, followed: Mapping[str, Followed]):
        self.query, self.statistics, self.tokenize = query, statistics_of(query), tokenizer_of(query)
        self.names, self.weights = query.details["fusion"]["signals"], np.array(query.details["fusion"]["weights"])
        self._followed = followed

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
        by_names, names = self._by_names(fact, tokens, held)
        parts = dict(zip(self.query.columns, candidates.scores.T, strict=True)) | {MATCH: combine(matches, [fact])[0]}
        parts = scaled(parts, most, by_names)
        columns = np.column_stack([parts[name] for name in self.names])
        scores = columns @ self.weights
        coverage = [max(self.statistics.coverage(query, of_passage) for query in words) for of_passage in tokens]
        told = [pair if gained else () for pair, gained in zip(names, parts[NAMES] > 0, strict=True)]
        return Fused(np.argsort(-scores, kind="stable"), scores, columns, coverage, told)

    def _by_names(
        self, fact: Fact, tokens: list[list[str]], held: list[Words]
    ) -> tuple[np.ndarray, list[tuple[str, ...]]]:
        """(each passage's best evidence, the other names in it: those of its best variant)."""
        found = []
        for variant in asked(fact):
            pair = [
                side(group, [name for own in group for name in self._others(own)], self.tokenize)
                for group in groups_of(variant, self.query)
            ]
            found.append(evidence(*pair, tokens, held, self.statistics, OWN[MATCH] / OWN["bm25"]))
        best = np.array([of_variant.best for of_variant in found])
        names = [found[i].names[passage] for passage, i in enumerate(best.argmax(axis=0))]
        return combine(best, [fact])[0], names

    def _others(self, own: str) -> list[tuple[str, float]]:
        return self._followed[own].names if own in self._followed else []
