"""Other names of what facts speak of, followed through the corpus: four Beam stages before the scores.

  sides of all facts -> anchors (a shard: a shard of the index)    the passages that hold a side best
                     -> runs    (a shard: a block of sides)        the best over all shards, the runs in their texts
                     -> counts  (a shard: a shard of the index)    how many passages hold a run, and the side with it
                     -> names   (a shard: a block of sides)        names with their weights (attribution/names.py)

A side is a subject or an object, each alias of it apart; of a fact without them the heaviest name in its prompt, and
its target. What is found depends on the whole index, however it is cut into shards.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attribution import bm25, dense
from attribution.names import ANCHORS, MOST, NEARNESS, runs, weights
from attribution.top_k import top_k
from pipelines import progress
from pipelines.query import Query, ask, combine, read_passages, read_statistics, statistics_of, tie_order, tokenizer_of
from pipelines.stage import Done, Shard, run_stage
from pipelines.storage import STAGES, OutputFolder, join, localize, read_bytes, verified
from schemas.facts import asked
from schemas.jsonl import jsonl_bytes
from schemas.records import Fact
from schemas.tables import ANCHORED, parquet_bytes

SIDES_PER_BLOCK = 512
BLOCKS_KEPT = 64  # in memory: a side's names are about 4 kB, so that they are 130 MB at most
PLACE = f"{STAGES}/names"
SIDES = f"{PLACE}/sides.jsonl"
Groups = tuple[list[str], list[str]]  # what a fact's first and second side are called
_words = bm25.word_tokenizer()


def groups_of(fact: Fact, query: Query) -> Groups:
    """Of a plain fact; nothing where it names nothing."""
    if fact.subject and fact.object:
        return [fact.subject], [fact.object, *fact.aliases]
    tokenize, statistics = tokenizer_of(query), statistics_of(query)

    def weight(run: str) -> float:
        """That of the words which the corpus knows: nothing follows from others."""
        return sum(statistics.idf(word) for word in set(tokenize(run)) if statistics.df(word))

    named = [run for run in runs(fact.prompt, ()) if weight(run)]
    if not named:
        return [], []
    return [max(named, key=lambda run: (weight(run), run))], [fact.target.strip(), *fact.aliases]


@dataclass(frozen=True)
class Followed:
    """What was found for one side: its other `names` with their weights, and its anchors' unit vectors `[n, dim]`."""

    names: list[tuple[str, float]]
    anchors: np.ndarray


def follow(query: Query, facts: list[Fact], output: OutputFolder, beam_args: tuple[str, ...]) -> None:
    """Runs the stages; `Names` then reads what they wrote."""
    read_statistics.cache_clear()  # the index may have been another when a job before this one read it
    groups = [groups_of(plain, query) for plain in ask(facts)[0]]
    sides = list(dict.fromkeys(itertools.chain.from_iterable(itertools.chain.from_iterable(groups))))
    output.write(SIDES, jsonl_bytes({"side": side} for side in sides), len(sides))
    _read_sides.cache_clear()  # the same folder may be asked again
    _read_block.cache_clear()
    shards = [Shard(shard["name"], shard) for shard in query.shards]
    blocks = [Shard(f"{number:05d}", {"block": number}) for number in range(len(_blocks(len(sides))))]
    for name, work, over in (
        ("anchors", anchor_shard, shards),
        ("runs", run_block, blocks),
        ("counts", count_shard, shards),
        ("names", name_block, blocks),
    ):
        run_stage(name, over, partial(work, query=query), output, beam_args)


def _blocks(num_sides: int) -> list[slice]:
    return [slice(i, min(i + SIDES_PER_BLOCK, num_sides)) for i in range(0, num_sides, SIDES_PER_BLOCK)]


@lru_cache(maxsize=2)
def _read_sides(folder: str) -> list[str]:
    return [json.loads(line)["side"] for line in read_bytes(join(folder, SIDES)).split(b"\n") if line]


def _rows(folder: str, kind: str, block: int) -> list[dict[str, Any]]:
    content = read_bytes(join(folder, f"{PLACE}/{kind}.{block:05d}.jsonl"))
    return [json.loads(line) for line in content.split(b"\n") if line]


def open_postings(query: Query, shard: str) -> bm25.Shard:
    files = {name: verified(query.index, f"bm25/{shard}/{name}") for name in bm25.SHARD_FILES}
    return bm25.Shard(files, statistics_of(query))


def anchor_shard(spec: dict[str, Any], folder: str, out: Path, query: Query) -> Done:
    """A shard's ANCHORS best passages, by BM25, of those that hold a side; a file a block of sides."""
    sides, tokenize, postings = _read_sides(folder), tokenizer_of(query), open_postings(query, spec["name"])
    table = pq.read_table(verified(query.index, f"examples/{spec['name']}.parquet"), columns=["example_id", "start"])
    ids, starts = np.array(table["example_id"].to_pylist(), dtype=object), table["start"].to_numpy()
    order, written = tie_order(ids, starts), {}
    (out / PLACE).mkdir(parents=True)
    with progress.bar(f"anchors, shard {spec['name']}", len(sides), "sides") as advance:
        for number, block in enumerate(_blocks(len(sides))):
            found, places, scored = [], [], []
            for place in range(block.start, block.stop):
                words = tokenize(sides[place])
                rows = postings.holding(words)
                scores = postings.scores_at(words, rows)
                best = top_k(scores, order[rows], ANCHORS)
                found.append(rows[best])
                scored.append(scores[best])
                places.append(np.full(len(best), place - block.start))
            rows = np.concatenate(found).astype(np.int64)
            columns = [np.concatenate(places), rows + spec["offset"], ids[rows], starts[rows], np.concatenate(scored)]
            name = f"{PLACE}/{spec['name']}.{number:05d}.parquet"
            (out / name).write_bytes(parquet_bytes(pa.table(columns, schema=ANCHORED)))
            written[name] = len(rows)
            advance(len(found))
    return Done({"in": len(sides)}, written)


def run_block(spec: dict[str, Any], folder: str, out: Path, query: Query) -> Done:
    """The anchors of a block of sides over all shards: the runs in their texts, and their vectors."""
    number = spec["block"]
    sides = _read_sides(folder)[_blocks(len(_read_sides(folder)))[number]]
    kept = ANCHORED.empty_table()
    for shard in query.shards:
        more = pq.read_table(localize(join(folder, f"{PLACE}/{shard['name']}.{number:05d}.parquet")))
        kept = _best_anchors(pa.concat_tables([kept, more]))
    passages = kept["passage"].to_numpy()
    texts, ends = read_passages(query, np.unique(passages)), np.cumsum(np.bincount(kept["side"], minlength=len(sides)))
    rows = []
    for side, begin, end in zip(sides, [0, *ends], ends.tolist(), strict=False):
        own = _words(side)
        found = itertools.chain.from_iterable(runs(texts[p]["text"], own) for p in passages[begin:end].tolist())
        rows.append({"side": side, "runs": list(dict.fromkeys(found)), "anchors": [int(begin), end]})
    (out / PLACE).mkdir(parents=True)
    name = f"{PLACE}/runs.{number:05d}.jsonl"
    (out / name).write_bytes(jsonl_bytes(rows))
    written = {name: len(rows)}
    if "dense" in query.signals:
        name = f"{PLACE}/vectors.{number:05d}.npy"
        np.save(out / name, _vectors(query, passages))
        written[name] = len(passages)
    return Done({"in": len(sides)}, written)


def _best_anchors(table: pa.Table) -> pa.Table:
    """Each side's ANCHORS best rows, best first, ties by id; sides in their order."""
    order = table.sort_by(
        [("side", "ascending"), ("score", "descending"), ("example_id", "ascending"), ("start", "ascending")]
    )
    side = order["side"].to_numpy()
    begins = np.searchsorted(side, side)
    return order.take(np.flatnonzero(np.arange(len(side)) - begins < ANCHORS)).combine_chunks()


def _vectors(query: Query, passages: np.ndarray) -> np.ndarray:
    """`[passages, dim]`."""
    found = np.empty((len(passages), query.details["dense"]["dim"]), np.float32)
    for shard in query.shards:
        here = np.flatnonzero((passages >= shard["offset"]) & (passages < shard["offset"] + shard["rows"]))
        if len(here):
            vectors = dense.ShardVectors(verified(query.index, f"dense/{shard['name']}.faiss")).vectors
            found[here] = vectors[passages[here] - shard["offset"]]
    return found


def count_shard(spec: dict[str, Any], folder: str, out: Path, query: Query) -> Done:
    """`[runs of a block, 2]` of a shard: how many passages hold the side and the run, and how many the run."""
    tokenize, postings, written = tokenizer_of(query), open_postings(query, spec["name"]), {}
    num_sides = len(_read_sides(folder))
    (out / PLACE).mkdir(parents=True)
    with progress.bar(f"names, shard {spec['name']}", num_sides, "sides") as advance:
        for number in range(len(_blocks(num_sides))):
            counts = []
            for row in _rows(folder, "runs", number):
                with_side = postings.holding(tokenize(row["side"]))
                for run in row["runs"]:
                    rows = postings.holding(tokenize(run))
                    counts.append((len(bm25.common(with_side, rows)), len(rows)))
                advance(1)
            name = f"{PLACE}/{spec['name']}.counts.{number:05d}.npy"
            np.save(out / name, np.array(counts, dtype=np.int64).reshape(-1, 2))
            written[name] = len(counts)
    return Done({"in": num_sides}, written)


def name_block(spec: dict[str, Any], folder: str, out: Path, query: Query) -> Done:
    """The MOST heaviest names of each side of a block, ties by name."""
    number, rows = spec["block"], []
    found = _rows(folder, "runs", number)
    counts = sum(
        np.load(localize(join(folder, f"{PLACE}/{shard['name']}.counts.{number:05d}.npy"))) for shard in query.shards
    )
    all_weights, place = weights(counts[:, 0], counts[:, 1]).tolist(), 0
    for row in found:
        here = zip(row["runs"], all_weights[place : place + len(row["runs"])], strict=True)
        place += len(row["runs"])
        names = sorted(((run, weight) for run, weight in here if weight), key=lambda pair: (-pair[1], pair[0]))
        rows.append({"side": row["side"], "names": names[:MOST], "anchors": row["anchors"]})
    (out / PLACE).mkdir(parents=True)
    name = f"{PLACE}/names.{number:05d}.jsonl"
    (out / name).write_bytes(jsonl_bytes(rows))
    return Done({"in": len(rows)}, {name: len(rows)})


@lru_cache(maxsize=BLOCKS_KEPT)
def _read_block(folder: str, number: int, with_vectors: bool) -> list[Followed]:
    vectors = np.empty((0, 0), np.float32)
    if with_vectors:
        vectors = np.load(localize(join(folder, f"{PLACE}/vectors.{number:05d}.npy")), mmap_mode="r")
    return [
        Followed([(name, weight) for name, weight in row["names"]], vectors[slice(*row["anchors"])])
        for row in _rows(folder, "names", number)
    ]


class Names(Mapping[str, Followed]):
    """What was found, by side; read block by block, the vectors memory-mapped."""

    def __init__(self, folder: str, with_vectors: bool = False):
        self._folder, self._with_vectors = folder, with_vectors
        self._places = {side: place for place, side in enumerate(_read_sides(folder))}

    def __getitem__(self, side: str) -> Followed:
        block, place = divmod(self._places[side], SIDES_PER_BLOCK)
        return _read_block(self._folder, block, self._with_vectors)[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class ShardNames:
    """One shard's passages as the names and the anchors of facts reach them.

    A passage is reached by a fact's side with the heaviest of its other names that it holds, or with 1 by its own.
    """

    def __init__(self, query: Query, folder: str, facts: list[Fact], postings: bm25.Shard, vectors: np.ndarray | None):
        self._postings, self._vectors = postings, vectors
        self._followed, self._tokenize = Names(folder, vectors is not None), tokenizer_of(query)
        self._groups = [[groups_of(plain, query) for plain in asked(fact)] for fact in facts]
        self._facts = facts
        self._reached: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._hops: dict[str, np.ndarray] = {}
        self._names: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def forget(self) -> None:
        """Before another block of facts: what is kept of a block is a float a passage and side."""
        self._reached.clear()
        self._hops.clear()
        self._names.clear()

    def names(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, sorted, that both sides of a fact reach, not both by their own name; the product of their weights)."""
        if number not in self._names:  # asked twice: for candidates, then for their scores
            found = [self._of_pair(*(self._reach_any(group) for group in pair)) for pair in self._groups[number]]
            rows = np.unique(np.concatenate([rows for rows, _ in found]))
            best = np.zeros(len(rows))
            for here, scores in found:
                np.maximum.at(best, np.searchsorted(rows, here), scores)
            self._names[number] = (rows, best)
        return self._names[number]

    def _of_pair(self, first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        rows = bm25.common(first[0], second[0])
        (weight_a, own_a), (weight_b, own_b) = (
            (side[1][at], side[2][at]) for side, at in ((s, np.searchsorted(s[0], rows)) for s in (first, second))
        )
        new = ~(own_a & own_b)
        return rows[new], (weight_a * weight_b)[new]

    def _reach_any(self, group: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, sorted, weights, whether by the first name of the group)."""
        parts = [self._reach(side) for side in group]
        return _joined(
            [rows for rows, _, _ in parts],
            [weights for _, weights, _ in parts],
            [own & (number == 0) for number, (_, _, own) in enumerate(parts)],
        )

    def _reach(self, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if side not in self._reached:
            names = [(side, 1.0), *self._followed[side].names]
            rows = [self._postings.holding(self._tokenize(name)) for name, _ in names]
            weights = [np.full(len(here), weight) for here, (_, weight) in zip(rows, names, strict=True)]
            own = [np.full(len(here), number == 0) for number, here in enumerate(rows)]
            self._reached[side] = _joined(rows, weights, own)
        return self._reached[side]

    def hop(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Of passages `rows`, or all, how they are reached by the side of a fact that reaches them less.

        A side reaches a passage with 1 by its own name, with NEARNESS of its weight by another one, or by the passage's
        highest cosine to one of the side's anchors.
        """
        count = self._postings.num_passages if rows is None else len(rows)
        variants = [
            np.min([np.max([self._hop(side, rows) for side in group], axis=0) for group in pair], axis=0)
            if pair[0]
            else np.zeros(count)
            for pair in self._groups[number]
        ]
        return combine(np.stack(variants), [self._facts[number]])[0]

    def _hop(self, side: str, rows: np.ndarray | None) -> np.ndarray:
        if rows is not None:
            return self._hop_to(side, rows)
        if side not in self._hops:
            self._hops[side] = self._hop_to(side, None).astype(np.float32)
        return self._hops[side]

    def _hop_to(self, side: str, rows: np.ndarray | None) -> np.ndarray:
        found, anchors = np.zeros(self._postings.num_passages if rows is None else len(rows)), None
        if self._vectors is not None:
            anchors, vectors = self._followed[side].anchors, self._vectors if rows is None else self._vectors[rows]
        if anchors is not None and len(anchors) and len(found):
            found = (vectors @ np.asarray(anchors).T).max(axis=1).astype(np.float64)
        reached, weights, own = self._reach(side)
        weights = np.where(own, 1.0, NEARNESS * weights)
        if rows is None:
            found[reached] = np.maximum(found[reached], weights)
        else:
            found = np.maximum(found, bm25.values_at(reached, weights, rows))
        return np.clip(found, 0.0, 1.0)


def _joined(rows: list[np.ndarray], weights: list[np.ndarray], own: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """(rows that are in one of the lists, sorted, the heaviest weight of each, whether one of them is its own)."""
    every = np.concatenate([np.empty(0, np.int32), *rows])
    distinct = np.unique(every)
    place = np.searchsorted(distinct, every)
    heaviest, is_own = np.zeros(len(distinct)), np.zeros(len(distinct), dtype=bool)
    np.maximum.at(heaviest, place, np.concatenate([np.empty(0), *weights]))
    np.logical_or.at(is_own, place, np.concatenate([np.empty(0, bool), *own]))
    return distinct, heaviest, is_own
