"""The search of `trace`: Beam stages over an index's shards.

  facts -> follow  (pipelines/names.py)                           other names of what the facts speak of
        -> queries (a shard: an encoder or a checkpoint)          query vectors of all facts
        -> score   (a shard: a shard of the index)                each signal's best, with all signals' scores
        -> merge_block (a block of facts)                         the best over all shards, ties by id

A shard's best contain every passage of that shard which is among the best of the whole index, so merging is exact and
no more than `top_k` candidates a fact, signal and shard are ever kept. Only where the dense signal has an approximate
index do its candidates come from there, for all shards at once, with the queries.
"""

import itertools
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attribution import dense, tracin
from attribution.bm25 import values_at
from attribution.curvature import SecondMoment, Whitener, mix
from attribution.embedding import embed
from attribution.fusion import HOP, NAMES
from attribution.sequences import encode_fact
from attribution.top_k import least_score, top_k
from pipelines import progress, resources
from pipelines.gradient import encode_passages, extractor_of, load_curvature, open_rows, recipe_of
from pipelines.names import ShardNames, follow, open_postings
from pipelines.query import (
    FACTS_PER_BLOCK,
    Candidates,
    Query,
    ask,
    combine,
    fact_blocks,
    read_facts,
    tie_order,
    tokenizer_of,
    write_facts,
)
from pipelines.stage import Done, Shard, run_stage, total
from pipelines.storage import STAGES, OutputFolder, join, localize, verified
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.facts import asked, text_query
from schemas.records import Fact
from schemas.tables import CANDIDATES, parquet_bytes

SHARDS_AT_ONCE = 64  # of candidates when they are merged: 256 facts' best 100 by three signals are 5 million rows
VARIANTS_AT_ONCE = 4096  # of queries: 164 MB of scores with a shard of 10,000 passages
ROWS_AT_ONCE = 256  # of features: 55 MB in float32 at a dim of 53,760, and as much whitened
QUERY_MOMENTS = STAGES + "/queries/moment-{}.safetensors"
WHITENERS = STAGES + "/queries/whitener-{}.safetensors"


def gradient_shards(query: Query) -> list[Shard]:
    """A shard of the `queries` stage for each checkpoint."""
    checkpoints = query.details["gradient"]["checkpoints"] if "gradient" in query.signals else []
    return [Shard(f"gradient-{i}", {"signal": "gradient", "checkpoint": i}) for i in range(len(checkpoints))]


def _query_shards(query: Query) -> list[Shard]:
    dense = [Shard("dense", {"signal": "dense"})] if "dense" in query.signals else []
    return dense + gradient_shards(query)


def embed_queries(spec: dict[str, Any], folder: str, out: Path, query: Query) -> Done:
    """Unit query vectors of all facts for the encoder or for one checkpoint, as a shard of the `queries` stage."""
    facts, _ = ask(read_facts(folder))
    place = out / STAGES / "queries"
    place.mkdir(parents=True)
    if spec["signal"] == "dense":
        return _dense_queries(facts, out, query)
    return _gradient_queries(spec["checkpoint"], facts, out, query)


def _dense_queries(facts: list[Fact], out: Path, query: Query) -> Done:
    """Unit vectors of the facts, and where the index has an approximate one the passages that it proposes for each."""
    recorded = query.details["dense"]
    if recorded["encoder"]:
        resources.require_still_there("encoder", recorded["encoder"])
        encoder = resources.encoder(recorded["encoder"])
        resources.require_same_model("encoder", encoder.path, recorded, encoder.model, encoder.tokenizer)
        with progress.bar("queries, dense", len(facts), "facts") as advance:
            vectors, _ = embed(encoder, [fact.prompt + fact.target for fact in facts], progress=advance)
    else:
        vectors = tracin.unit(np.array([fact.embedding for fact in facts], dtype=np.float32))
    np.save(out / STAGES / "queries" / "dense.npy", vectors)
    written = [f"{STAGES}/queries/dense.npy"]
    if "approximate" in recorded:
        index = open_approximate(query.index, recorded)
        with progress.bar("candidates, dense", len(facts), "facts") as advance:
            proposed = []
            for start in range(0, len(vectors), FACTS_PER_BLOCK):
                block = vectors[start : start + FACTS_PER_BLOCK]
                proposed.append(np.sort(index.propose(block, query.top_k), axis=1))  # a shard's are then neighbours
                advance(len(proposed[-1]))
        np.save(out / STAGES / "queries" / "proposed.npy", np.concatenate(proposed))
        written.append(f"{STAGES}/queries/proposed.npy")
    return Done({"in": len(facts)}, dict.fromkeys(written, len(facts)))


def open_approximate(index: str, recorded: dict[str, Any]) -> dense.Approximate:
    """The index's approximate dense index."""
    found = recorded["approximate"]
    parts = [verified(index, name) for name in found["files"]]
    return dense.Approximate(parts, dense.Setting(found["nprobe"], tuple(found["proposed"])))


def _gradient_queries(number: int, facts: list[Fact], out: Path, query: Query) -> Done:
    """Features of the facts for one checkpoint, whitened where the index says so, with the whitener for the shards."""
    row, curvature = query.details["gradient"]["checkpoints"][number], query.details["gradient"]["curvature"]
    resources.require_still_there("checkpoint", row["path"])
    extractor = extractor_of(row, recipe_of(query.details), query.index)
    source = extractor.checkpoint
    resources.require_same_model("checkpoint", source.path, row, source.model, source.tokenizer)
    resources.require_same_loss(source.path, row["probe_loss"], extractor.probe_loss(), recipe_of(query.details).dtype)
    sequences = [encode_fact(source, fact) for fact in facts]
    with progress.bar(f"queries, {row['name']}", len(facts), "facts") as advance:
        features = extractor.features(sequences, advance)
    for fact, finite in zip(facts, np.isfinite(features).all(axis=1), strict=True):
        if not finite:
            raise ConfigError(f"fact {fact.id!r}: its gradient with {source.path} is not finite; ask in other words")
    written, told = [f"{STAGES}/queries/gradient-{number}.npy"], {}
    if curvature["kind"] == "mixed":
        moment = SecondMoment.zero(row["widths"])
        moment.add(features[(features != 0).any(axis=1)])
        moment.save(out / QUERY_MOMENTS.format(number))
        if "fusion" in query.details:  # while a generation of the index is being made it has no such file
            moment = moment.merge(load_curvature(query.index, row, "queries"))
        corpus = load_curvature(query.index, row, "corpus")
        matrices, told["lambda"] = mix(corpus, moment, curvature["share"])
        whitener = Whitener(matrices, curvature["damping"])
        whitener.save(out / WHITENERS.format(number))
        features = whitener.apply(features)
        written += [QUERY_MOMENTS.format(number), WHITENERS.format(number)]
    np.save(out / written[0], tracin.unit(features))
    return Done({"in": len(facts)}, dict.fromkeys(written, len(facts)), told)


@lru_cache(maxsize=1)
def _whitener(path: str) -> Whitener:
    return Whitener.load(Path(path))


def _load_queries(folder: str, name: str) -> np.ndarray:
    return np.load(localize(join(folder, STAGES, "queries", f"{name}.npy")), mmap_mode="r")


def _shard_table(query: Query, name: str, columns: list[str]) -> pa.Table:
    return pq.read_table(verified(query.index, f"examples/{name}.parquet"), columns=columns)


class _ShardScorer:
    """One shard of the index, opened: of each signal its best passages for a fact, and its scores of given ones.

    `open_block` comes first. Words are looked up; scores of vectors are made for a block of facts at once.
    """

    def __init__(
        self,
        query: Query,
        shard: dict[str, Any],
        folder: str,
        facts: list[Fact],
        tie_order: np.ndarray,
        matching: np.ndarray | None,
    ):
        self.query, self.name, self.rows, self.folder = query, shard["name"], shard["rows"], folder
        self.matching = matching  # sorted rows, None for all
        self.offset, self.facts, self.tie_order, self.tokenize = shard["offset"], facts, tie_order, tokenizer_of(query)
        self.first = ask(facts)[1]
        self._made: np.ndarray | None = None
        self._made_from = 0
        self.postings = open_postings(query, self.name)
        self._vector_scores: dict[str, np.ndarray] = {}
        self._proposed, vectors = None, None
        if "dense" in query.signals:
            self._dense = dense.ShardVectors(verified(query.index, f"dense/{self.name}.faiss"))
            if not np.array_equal(self._dense.ids, np.arange(self.offset, self.offset + self.rows)):
                raise ArtifactMismatch(
                    f"{query.index}: dense ids of shard {self.name} are not its passages'; index again"
                )
            self._queries = _load_queries(folder, "dense")
            # What is proposed may all be filtered out, so a filter asks all vectors.
            if "approximate" in query.details["dense"] and matching is None:
                self._proposed = np.asarray(_load_queries(folder, "proposed"))
            vectors = self._dense.vectors
        self._followed = ShardNames(query, folder, facts, self.postings, vectors)

    def _variants(self, number: int) -> slice:
        return slice(self.first[number], self.first[number + 1])

    def _features(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, features of them) for one checkpoint: as stored, or made anew by a pass over the shard's passages."""
        row = self.query.details["gradient"]["checkpoints"][number]
        if not self.query.scan:
            for start, found in open_rows(self.query.index, row, self.name).blocks(ROWS_AT_ONCE):
                yield np.arange(start, start + len(found)), found
            return
        extractor = extractor_of(row, recipe_of(self.query.details), self.query.index)
        table = _shard_table(self.query, self.name, ["text", "parts", "file", "row", "example_id"])
        sequences, _ = encode_passages(extractor, table, row)
        with progress.bar(f"scan, {row['name']}, shard {self.name}", self.rows, "passages") as advance:
            for positions, found in extractor.batches(sequences):
                yield np.array(positions), np.where(np.isfinite(found).all(axis=1)[:, None], found, 0.0)
                advance(len(positions), sum(sequences[i].size for i in positions))

    def _gradient(self, asked_here: slice) -> np.ndarray:
        """`[variants, rows]`, made for many blocks at once: features are dear to read, to whiten and to make."""
        if self._made is None or asked_here.stop > self._made_from + len(self._made):
            self._made_from = asked_here.start
            self._made = self._gradient_scores(
                asked_here.start, max(asked_here.stop, asked_here.start + VARIANTS_AT_ONCE)
            )
        return self._made[asked_here.start - self._made_from : asked_here.stop - self._made_from]

    def _gradient_scores(self, begin: int, end: int) -> np.ndarray:
        scores = None
        for number, recorded in enumerate(self.query.details["gradient"]["checkpoints"]):
            queries = np.asarray(_load_queries(self.folder, f"gradient-{number}")[begin:end])
            if scores is None:
                scores = np.zeros((len(queries), self.rows), dtype=np.float32)
            whitened = self.query.details["gradient"]["curvature"]["kind"] == "mixed"
            whitener = _whitener(localize(join(self.folder, WHITENERS.format(number)))) if whitened else None
            for rows, found in self._features(number):
                features = whitener.apply(found) if whitener else found
                tracin.add_checkpoint(scores, recorded["weight"], queries, features, rows)
        return scores

    def open_block(self, block: slice) -> None:
        """Makes the scores of vectors `[facts of the block, rows]`."""
        self._begin, facts = block.start, self.facts[block]
        self._followed.forget()
        asked_here = slice(self.first[block.start], self.first[block.stop])
        if "dense" in self.query.signals and self._proposed is None:
            scores = np.asarray(self._queries[asked_here]) @ self._dense.vectors.T
            self._vector_scores["dense"] = combine(scores, facts)
        if "gradient" in self.query.signals:
            self._vector_scores["gradient"] = combine(self._gradient(asked_here), facts)

    def _words(self, number: int) -> tuple[list[list[str]], int]:
        """(queries whose highest score counts, by what it is divided).

        BM25 adds up over words, so the mean over a fact's variants is one query of all their words.
        """
        fact = self.facts[number]
        words = [self.tokenize(text_query(variant, self.query.text_query)) for variant in asked(fact)]
        return (words, 1) if fact.combine == "max" else ([list(itertools.chain(*words))], len(words))

    def best(self, signal: str, number: int) -> np.ndarray:
        """Rows of the fact's `top_k` by a signal, among those that `--where` lets through.

        Where vectors are searched approximately nothing is found by HOP alone.
        """
        if signal == HOP and self._proposed is not None:
            return np.empty(0, np.int64)
        rows = self._rows(signal, number) if self.matching is None else self.matching
        scores = self.scores_at(signal, number, rows)
        return rows[top_k(scores, self.tie_order[rows], self.query.depth(signal), least_score(signal))]

    def _rows(self, signal: str, number: int) -> np.ndarray:
        """Rows that hold the fact's `top_k` by a signal, as far as an approximate index proposes them."""
        if signal == "bm25":
            found = [self.postings.candidates(words, self.query.top_k) for words in self._words(number)[0]]
            return found[0] if len(found) == 1 else np.unique(np.concatenate(found))
        if signal == NAMES:
            return self._followed.names(number)[0]
        if signal == "dense" and self._proposed is not None:
            ends = (self.offset, self.offset + self.rows)
            found = [
                ids[slice(*np.searchsorted(ids, ends))] - self.offset for ids in self._proposed[self._variants(number)]
            ]
            return found[0] if len(found) == 1 else np.unique(np.concatenate(found))
        return np.arange(self.rows)

    def scores_at(self, signal: str, number: int, rows: np.ndarray) -> np.ndarray:
        """A fact's float64 scores of passages `rows`."""
        if signal == "bm25":
            queries, divisor = self._words(number)
            found = [self.postings.scores_at(words, rows) for words in queries]
            return (found[0] if len(found) == 1 else np.max(found, axis=0)) / divisor
        if signal == NAMES:
            return values_at(*self._followed.names(number), rows)
        if signal == HOP:
            if self._proposed is not None:
                return self._followed.hop(number, rows)
            return self._followed.hop(number)[rows]
        if signal == "dense" and self._proposed is not None:
            queries = np.asarray(self._queries[self._variants(number)])
            scores = self._dense.products(queries, np.broadcast_to(rows, (len(queries), len(rows))))
            return combine(scores, [self.facts[number]])[0].astype(np.float64)
        return self._vector_scores[signal][number - self._begin, rows].astype(np.float64)


def score_shard(spec: dict[str, Any], folder: str, out: Path, query: Query) -> Done:
    """Every signal's best passages of one shard for all facts, with all signals' scores, in a file a block of facts."""
    facts = read_facts(folder)
    field, _, pattern = query.where.partition("=")
    table = _shard_table(query, spec["name"], ["example_id", "start"] + [field] * bool(field))
    ids, starts, matching = np.array(table["example_id"].to_pylist(), dtype=object), table["start"].to_numpy(), None
    if field:
        matching = np.flatnonzero([fnmatchcase(value, pattern) for value in table[field].to_pylist()])
    scorer = _ShardScorer(query, spec, folder, facts, tie_order(ids, starts), matching)
    place = out / STAGES / "candidates"
    place.mkdir(parents=True)
    written = {}
    with progress.bar(f"score, shard {spec['name']}", len(facts), "facts") as advance:
        for number, block in enumerate(fact_blocks(len(facts))):
            scorer.open_block(block)
            parts: dict[str, list[np.ndarray]] = {"fact": [], "passage": [], "scores": []}
            for fact in range(block.start, block.stop):
                rows = np.unique(np.concatenate([scorer.best(signal, fact) for signal in query.columns]))
                parts["fact"].append(np.full(len(rows), fact))
                parts["passage"].append(rows)
                parts["scores"].append(np.stack([scorer.scores_at(s, fact, rows) for s in query.columns], 1))
            rows, scores = np.concatenate(parts["passage"]), np.concatenate(parts["scores"])
            columns = [
                pa.array(np.concatenate(parts["fact"])),
                pa.array(rows + spec["offset"]),
                pa.array(ids[rows], pa.string()),
                pa.array(starts[rows]),
                pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), len(query.columns)).cast(
                    pa.list_(pa.float64())
                ),
            ]
            name = f"{STAGES}/candidates/{spec['name']}.{number:05d}.parquet"
            (out / name).write_bytes(parquet_bytes(pa.Table.from_arrays(columns, schema=CANDIDATES)))
            written[name] = len(rows)
            advance(len(facts[block]))
    return Done({"in": len(facts), "matching": spec["rows"] if matching is None else len(matching)}, written)


def search(query: Query, facts: list[Fact], output: OutputFolder, beam_args: tuple[str, ...]) -> None:
    """Runs all stages; `merge_block` then reads what they wrote."""
    write_facts(facts, output)
    read_facts.cache_clear()  # the same folder may be searched again with other facts, in this process
    _whitener.cache_clear()
    follow(query, facts, output, beam_args)
    run_stage("queries", _query_shards(query), partial(embed_queries, query=query), output, beam_args)
    shards = [Shard(shard["name"], shard) for shard in query.shards]
    records = run_stage("score", shards, partial(score_shard, query=query), output, beam_args)
    if not total(records, "matching"):
        raise ConfigError(
            f"--where {query.where}: expected passages that match, found none in {query.index}; the pattern is that of "
            "a shell (* and ?), and the whole value must match"
        )


def _best_of(query: Query, table: pa.Table) -> list[tuple[int, pa.Table, np.ndarray]]:
    """(fact, its rows in the order of ids, their scores `[rows, columns]`): each column's best of candidates."""
    lists = table["signal_scores"].combine_chunks()
    scores = lists.flatten().to_numpy().reshape(-1, len(query.columns))
    fact_of = table["fact"].to_numpy()
    order = np.argsort(fact_of, kind="stable")
    found = []
    for fact, begin, end in zip(*_groups(fact_of[order]), strict=True):
        rows = order[begin:end]
        if len(rows) > query.top_k:  # ids are compared only where they may decide
            least = np.partition(scores[rows], len(rows) - query.top_k, axis=0)[len(rows) - query.top_k]
            rows = rows[(scores[rows] >= least).any(axis=1)]
        here = table.take(rows)
        order_of = tie_order(np.array(here["example_id"].to_pylist(), dtype=object), here["start"].to_numpy())
        best = [
            top_k(scores[rows, column], order_of, query.depth(signal), least_score(signal))
            for column, signal in enumerate(query.columns)
        ]
        kept = np.unique(np.concatenate(best))
        kept = kept[np.argsort(order_of[kept])]
        found.append((int(fact), here.take(kept), scores[rows[kept]]))
    return found


def _groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values, begins, ends) of the runs of equal values."""
    names, begins = np.unique(values, return_index=True)
    return names, begins, np.append(begins[1:], len(values))


def merge_block(query: Query, folder: str, number: int, num_facts: int) -> Iterator[Candidates]:
    """The candidates of each fact of a block, in order: the union of each signal's `top_k` over all shards."""
    names = [join(folder, STAGES, "candidates", f"{s['name']}.{number:05d}.parquet") for s in query.shards]
    kept: list[tuple[int, pa.Table, np.ndarray]] = []
    for start in range(0, len(names), SHARDS_AT_ONCE):
        tables = [pq.read_table(localize(name)) for name in names[start : start + SHARDS_AT_ONCE]]
        kept = _best_of(query, pa.concat_tables([table for _, table, _ in kept] + tables).combine_chunks())
    by_fact = {fact: (table, scores) for fact, table, scores in kept}
    nothing = (CANDIDATES.empty_table(), np.empty((0, len(query.columns))))
    block = fact_blocks(num_facts)[number]
    for fact in range(block.start, block.stop):
        table, scores = by_fact.get(fact, nothing)
        yield Candidates(
            table["passage"].to_numpy(), table["example_id"].to_pylist(), table["start"].to_numpy(), scores
        )
