"""The product's own scores of chosen examples, and of all: its index, opened without its `trace`.

A long document is several passages; its score is that of its best one.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from attribution import bm25
from attribution.dense import ShardVectors
from pipelines.fused import Fuser
from pipelines.query import Query, statistics_of, tokenizer_of
from pipelines.storage import read_manifest, verified


class Opened:
    """An index with the signals bm25 and dense; examples are named by their rows in the order of ids."""

    def __init__(self, folder: Path, row_of: dict[str, int]):
        self.details = read_manifest(str(folder), "index").details
        query = Query(str(folder), self.details, "auto", top_k=100)
        self.tokenize, statistics, self.fuser = tokenizer_of(query), statistics_of(query), Fuser(query, {})
        self.shards, self.offsets, examples, vectors = [], [], [], []
        for shard in query.shards:
            files = {name: verified(str(folder), f"bm25/{shard['name']}/{name}") for name in bm25.SHARD_FILES}
            self.shards.append(bm25.Shard(files, statistics))
            self.offsets.append(shard["offset"])
            table = pq.read_table(verified(str(folder), f"examples/{shard['name']}.parquet"), columns=["example_id"])
            examples += [row_of[example] for example in table["example_id"].to_pylist()]
            vectors.append(ShardVectors(verified(str(folder), f"dense/{shard['name']}.faiss")).vectors.copy())
        self.example_of, self.vectors = np.array(examples), np.concatenate(vectors)
        self.ends = np.append(self.offsets[1:], len(self.example_of))
        self._by_example = np.argsort(self.example_of, kind="stable")
        self._first = np.searchsorted(self.example_of[self._by_example], np.arange(len(row_of) + 1))

    def bm25_ranking(self, text: str, k: int) -> list[int]:
        """The best k passages as `trace` ranks them by this signal alone, as rows of examples."""
        words, passages, scores = self.tokenize(text), [], []
        for shard, offset in zip(self.shards, self.offsets, strict=True):
            rows = shard.candidates(words, k)
            passages.append(rows + offset)
            scores.append(shard.scores_at(words, rows))
        passages, scores = np.concatenate(passages), np.concatenate(scores)
        order = np.lexsort((passages, self.example_of[passages], -scores))[:k]
        return list(dict.fromkeys(self.example_of[passages[order]].tolist()))

    def bm25(self, text: str, examples: np.ndarray) -> np.ndarray:
        """BM25 scores of these examples."""
        words, (passages, owners) = self.tokenize(text), self._passages(examples)
        scores = np.empty(len(passages))
        for shard, offset, end in zip(self.shards, self.offsets, self.ends, strict=True):
            here = (passages >= offset) & (passages < end)
            scores[here] = shard.scores_at(words, passages[here] - offset)
        return _best(scores, owners, len(examples), least=0.0)

    def dense(self, vector: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Inner products with a query's unit vector."""
        passages, owners = self._passages(examples)
        return _best(self.vectors[passages] @ vector, owners, len(examples), least=-1.0)

    def _passages(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the examples' passages one after another, to which of the examples each belongs)."""
        parts = [self._by_example[self._first[e] : self._first[e + 1]] for e in examples]
        return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def _best(scores: np.ndarray, owners: np.ndarray, count: int, least: float) -> np.ndarray:
    """Each one's best passage's score; the least that the signal can give for one that the index refused."""
    found = np.full(count, least)
    np.maximum.at(found, owners, scores)
    return found
