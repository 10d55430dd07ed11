"""`trace`: facts become rankings of the passages behind them.

index + facts -> search (queries, score)  -> rank (a shard: a block of facts) -> rankings.jsonl, .parquet, .trec
"""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attribution.fusion import fuse
from pipelines import progress, resources
from pipelines.config import TraceConfig
from pipelines.search import (
    Candidates,
    Query,
    fact_blocks,
    merge_block,
    read_facts,
    read_passages,
    search,
    statistics_of,
    tokenizer_of,
)
from pipelines.stage import Done, Shard, library_versions, log_runner, run_stage, total
from pipelines.storage import STAGES, OutputFolder, absolute, join, localize, read_bytes, read_manifest
from schemas.errors import ConfigError
from schemas.facts import parse_facts, text_query
from schemas.manifest import FileInfo, Manifest, require_match
from schemas.rankings import rankings_to_jsonl, rankings_to_table, rankings_to_trec
from schemas.records import Proponent
from schemas.tables import RANKINGS

log = logging.getLogger(__name__)
PARTS = f"{STAGES}/rankings"


def _order(candidates: Candidates, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions best first, fused scores): candidates stand in the order of their ids, which breaks ties."""
    fused = fuse(candidates.scores, weights)
    return np.argsort(-fused, kind="stable"), fused


def rank_block(spec: dict[str, Any], folder: str, out: Path, query: Query) -> Done:
    """The rankings of a block of facts: candidates of all shards merged, fused, and given their text."""
    facts = read_facts(folder)
    block = fact_blocks(len(facts))[spec["block"]]
    weights = np.array(query.details["fusion"]["weights"])
    statistics, tokenize = statistics_of(query), tokenizer_of(query)
    merged = list(merge_block(query, folder, spec["block"], len(facts)))
    texts = read_passages(query, np.unique(np.concatenate([c.passages for c in merged])))
    proponents = []
    with progress.bar(f"rank, block {spec['block']}", len(merged), "facts") as advance:
        for fact, candidates in zip(facts[block], merged, strict=True):
            words = tokenize(text_query(fact, query.text_query))
            order, fused = _order(candidates, weights)
            for rank, i in enumerate(order, start=1):
                passage = texts[int(candidates.passages[i])]
                proponents.append(
                    Proponent(
                        fact_id=fact.id,
                        rank=rank,
                        score=float(fused[i]),
                        example_id=passage["example_id"],
                        start=passage["start"],
                        end=passage["end"],
                        signals=dict(zip(query.signals, candidates.scores[i].tolist(), strict=True)),
                        text=passage["text"],
                        source=passage["source"],
                        sha256=passage["sha256"],
                        coverage=statistics.coverage(words, tokenize(passage["text"])),
                    )
                )
            advance(1)
    name = f"{PARTS}/{spec['block']:05d}"
    (out / PARTS).mkdir(parents=True)
    (out / f"{name}.jsonl").write_bytes(rankings_to_jsonl(proponents))
    (out / f"{name}.trec").write_bytes(rankings_to_trec(proponents))
    pq.write_table(rankings_to_table(proponents), out / f"{name}.parquet")
    rows = {f"{name}{end}": len(proponents) for end in (".jsonl", ".trec", ".parquet")}
    return Done({"in": len(merged), "proponents": len(proponents)}, rows)


def _join_parts(output: OutputFolder, blocks: int, rows: int) -> list[FileInfo]:
    """The blocks' parts as one file a format."""
    names = [join(output.path, PARTS, f"{block:05d}") for block in range(blocks)]
    files = [
        output.write(f"rankings{end}", data, data.count(b"\n"))
        for end in (".jsonl", ".trec")
        for data in [b"".join(read_bytes(name + end) for name in names)]
    ]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, RANKINGS, compression="zstd") as writer:
        for name in names:
            writer.write_table(pq.read_table(localize(name + ".parquet"), schema=RANKINGS))
    return [*files, output.write("rankings.parquet", sink.getvalue().to_pybytes(), rows)]


def run(config: TraceConfig, beam_args: tuple[str, ...] = ()) -> Manifest:
    """Writes the rankings to `config.output`. Raises ConfigError, or ArtifactMismatch for an index of another model."""
    index = read_manifest(config.index, "index")
    facts = parse_facts(read_bytes(config.facts), config.facts)
    for fact in facts:
        text_query(fact, config.text_query)  # refuses before anything is written
    recorded = index.details["bm25"]
    if recorded["tokenizer"] != "word":
        found = resources.tokenizer_hash(resources.subword_tokenizer(recorded["tokenizer"]))
        remedy = "index again with this tokenizer, or put the old one back"
        require_match(f"BM25 tokenizer at {recorded['tokenizer']}", recorded["tokenizer_sha256"], found, remedy)
    query = Query(absolute(config.index), index.details, config.text_query, config.top_k)
    tokenize = tokenizer_of(query)
    for fact in facts:  # the gradient signal asks its model's tokenizer, in the workers
        if "gradient" not in query.signals and not tokenize(fact.target):
            raise ConfigError(
                f"{config.facts}: fact {fact.id!r}: the target {fact.target!r} has no token; give a target with words"
            )
    log_runner(beam_args)
    plan = asdict(config) | {"facts_rows": [fact.to_row() for fact in facts], "index_details": index.details}
    plan.pop("quiet")
    with OutputFolder(config.output, plan) as output:
        search(query, facts, output, beam_args, stage="")
        blocks = fact_blocks(len(facts))
        shards = [Shard(f"{number:05d}", {"block": number}) for number in range(len(blocks))]
        records = run_stage("rank", shards, partial(rank_block, query=query), output, beam_args)
        proponents = total(records, "proponents")
        manifest = Manifest(
            kind="rankings",
            config=asdict(config),
            versions=library_versions(),
            counts={"in": len(facts), "kept": total(records, "in"), "removed": 0, "dead": 0},
            details={
                "index": query.index,
                "signals": query.signals,
                "fusion": index.details["fusion"],
                "proponents": proponents,
                "fact_ids": [fact.id for fact in facts],
                "approximations": index.details["approximations"],
            },
            files=_join_parts(output, len(blocks), proponents),
        )
        output.finish(manifest)
    progress.summary(
        "trace",
        {"folder": config.output, "facts": len(facts), "proponents": proponents, "signals": ", ".join(query.signals)},
    )
    return manifest
