"""C: where words do not help. Proponents that share no content word with what is asked, in four kinds (`hidden.py`).

corpus + facts -> the corpus and facts of four kinds -> index (bm25, dense) -> trace -> rankings of every arm -> figures

The arms, each asked for the same facts over the same passages:

- `fused`: what the product's `trace` ranks with its defaults; `bm25` (subject + object) and `dense` are the two signals
  in it, as `evaluate` ranks them;
- `bm25_prompt_target`: the same index asked by prompt + target;
- `rrf`: reciprocal rank fusion of `bm25` and `dense`;
- `random`: what chance gives, by formula.

Each kind has as many facts, so an arm's figure over all of them is the mean of its figures of the kinds. BM25 finds
next to nothing by construction (the build refuses what it finds more of): `fused` is as good as what it finds beyond.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality import a1, hidden, metrics, synthetic
from bench.quality.data import SYNTHETIC, Data, read, say
from bench.quality.kept import Kept
from bench.quality.scores import Opened
from pipelines import index
from pipelines.config import IndexConfig
from pipelines.stage import library_versions
from pipelines.storage import read_manifest
from schemas.facts import text_query
from schemas.jsonl import jsonl_bytes
from schemas.manifest import FORMAT_VERSION, MANIFEST

SIZES = {"small": (60, 6000), "full": (100, 20_000)}  # facts of a kind, passages
PEOPLE = 1600  # of the synthetic corpus, which is to have as many passages and sentences to rewrite


def run(
    setting: str, data: Data, out: Path, encoder: str = "", size: tuple[int, int] | None = None, people: int = PEOPLE
) -> dict[str, Any]:
    """The result of the track; what is expensive is kept in `out`. `encoder` is a folder, by default MiniLM's; `size`
    stands in for that of the setting, `people` says how large the synthetic corpus is."""
    start, code = time.perf_counter(), a1.code_sha256()
    num_facts, num_passages = size or SIZES[setting]
    encoder, encoder_version = (encoder, "given") if encoder else a1.default_encoder()
    versions = library_versions() | {"encoder": encoder_version}
    config = {
        "track": "C",
        "setting": setting,
        "facts_of_a_kind": num_facts,
        "passages": num_passages,
        "seed": hidden.SEED,
        "top_k": a1.TOP,
        "rrf_k": a1.RRF_K,
    }
    kept, made_of = Kept(out), {"data_sha256": data.sha256, "config": config, "people": people, "code_sha256": code}

    def make_told(place: Path) -> None:
        source, built = build(data, num_facts, num_passages, people, place)
        for name, rows in (("corpus", built.corpus), ("facts", built.facts)):
            (place / f"{name}.jsonl").write_bytes(jsonl_bytes(rows))
        links = [{"id": fact["id"], "kind": fact["kind"], "links": built.links[fact["id"]]} for fact in built.facts]
        (place / "links.jsonl").write_bytes(jsonl_bytes(links))
        (place / "name").write_text(source)

    say("telling facts in other words")
    place = kept.folder("told", made_of, make_told)
    told, kind_of = read(place, (place / "name").read_text()), kinds(place)

    def make_index(place: Path) -> None:
        if not (place / "index" / MANIFEST).is_file():
            index.run(IndexConfig(corpus=told.corpus, output=str(place / "index"), encoder=encoder, seed=hidden.SEED))

    key = {"data_sha256": told.sha256, "encoder": encoder_version, "format_version": FORMAT_VERSION}
    folder = kept.folder("index", key, make_index) / "index"
    indexed = time.perf_counter()
    key = made_of | {"told_sha256": told.sha256, "encoder": encoder_version, "versions": versions}
    ranked_in = kept.folder("rankings", key, lambda place: make_rankings(place, folder, told))
    ranked = time.perf_counter()
    with np.load(ranked_in / "rankings.npz") as found:
        rankings = {name: found[name] for name in found.files}
    return {
        "track": "C",
        "data": told.name,
        "data_sha256": told.sha256,
        "examples": len(told.ids),
        "facts": len(told.facts),
        **figures(rankings, told, [kind_of[fact.id] for fact in told.facts]),
        "config": config,
        "fusion": read_manifest(str(folder), "index").details["fusion"],
        "seed": hidden.SEED,
        "versions": versions,
        "seconds": {
            "index": round(indexed - start, 1),
            "rank": round(ranked - indexed, 1),
            "all": round(time.perf_counter() - start, 1),
        },
    }


def build(data: Data, num_facts: int, num_passages: int, people: int, place: Path) -> tuple[str, hidden.Hidden]:
    """(what it is made of, what is made): of the data, with fewer facts where these are too few, or else of synthetic
    ones; either is said."""
    for count in dict.fromkeys((num_facts, min(num_facts, hidden.LEAST_FACTS))) if data.name != SYNTHETIC else ():
        try:
            return data.name, hidden.build(data, count, num_passages)
        except hidden.TooFew as error:
            say(f"{data.name}: {error}")
    say("running on a synthetic corpus")
    corpus, facts = synthetic.generate(people=people)
    folder = place / SYNTHETIC
    folder.mkdir(exist_ok=True)
    (folder / "corpus.jsonl").write_bytes(jsonl_bytes(corpus))
    (folder / "facts.jsonl").write_bytes(jsonl_bytes(facts))
    return SYNTHETIC, hidden.build(read(folder, SYNTHETIC), num_facts, num_passages)


def kinds(place: Path) -> dict[str, str]:
    """By fact its kind."""
    return {row["id"]: row["kind"] for row in map(json.loads, (place / "links.jsonl").read_text().splitlines())}


def make_rankings(place: Path, index_folder: Path, told: Data) -> None:
    """Writes `rankings.npz`: of each arm the rows `[facts, at most 100]`, padded with -1."""
    opened = Opened(index_folder, told.row_of)
    found = a1.traced(place, index_folder, opened.fuser, told, told.facts)
    found["bm25"] = found.pop("bm25_subject_object")
    found["bm25_prompt_target"] = [
        opened.bm25_ranking(text_query(fact, "prompt_target"), a1.TOP) for fact in told.facts
    ]
    found["rrf"] = [a1.fused_by_rank([a, b]) for a, b in zip(found["bm25"], found["dense"], strict=True)]
    np.savez(place / "rankings.npz", **{name: a1.padded(rankings) for name, rankings in found.items()})


def figures(rankings: dict[str, np.ndarray], told: Data, kind_of: list[str]) -> dict[str, Any]:
    known = [told.proponents(fact) for fact in told.facts]
    arms = {name: metrics.per_fact(table, known) for name, table in rankings.items()}
    arms["random"] = np.array([metrics.chance(len(told.ids), len(rows), a1.TOP) for rows in known])
    return {**metrics.compare(arms, "fused", hidden.SEED), "by_kind": metrics.breakdown(arms, kind_of)}
