"""`trace`: facts become rankings of the passages behind them.

index + facts -> search (queries, score)  -> rank (a shard: a block of facts) -> rankings.jsonl, .parquet, .trec
"""

import logging
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from attribution.fusion import MATCH, NAMES
from pipelines import progress, resources
from pipelines.config import TraceConfig
from pipelines.fused import Fuser
from pipelines.names import Names
from pipelines.query import Query, fact_blocks, read_facts, read_passages, tokenizer_of
from pipelines.requests import AskedRequest, ask_model, read_requests, requests_to_jsonl
from pipelines.rerank import EXACT, read_exact, rerank, reranked
from pipelines.search import merge_block, search
from pipelines.stage import Done, Shard, library_versions, log_runner, run_stage, total
from pipelines.storage import (
    STAGES,
    OutputFolder,
    absolute,
    is_local,
    join,
    localize,
    publish,
    read_bytes,
    read_manifest,
)
from schemas.errors import ConfigError
from schemas.facts import asked, parse_facts, text_query
from schemas.manifest import FileInfo, Manifest, require_match
from schemas.rankings import rankings_to_jsonl, rankings_to_table, rankings_to_trec
from schemas.records import Proponent
from schemas.removals import REQUESTS
from schemas.requests import AuditRequest, facts_of
from schemas.tables import RANKINGS

log = logging.getLogger(__name__)
PARTS = f"{STAGES}/rankings"


def rank_block(spec: dict[str, Any], folder: str, out: Path, query: Query, exactly: int) -> Done:
    """The rankings of a block of facts: candidates of all shards merged, fused, and given their text.

    The best `exactly` of each are ordered anew with their exact gradients.
    """
    facts = read_facts(folder)
    block = fact_blocks(len(facts))[spec["block"]]
    fuser = Fuser(query, Names(folder))
    merged = list(merge_block(query, folder, spec["block"], len(facts)))
    texts = read_passages(query, np.unique(np.concatenate([c.passages for c in merged])))
    exact = read_exact(query, folder, spec["block"]) if exactly else [{} for _ in merged]
    proponents = []
    with progress.bar(f"rank, block {spec['block']}", len(merged), "facts") as advance:
        for fact, candidates, told in zip(facts[block], merged, exact, strict=True):
            fused = fuser.fuse(fact, candidates, texts)
            if told:
                fused = reranked(candidates, fused, fuser.weights, query.signals.index("gradient"), told)
            for rank, i in enumerate(fused.order, start=1):
                passage, more = texts[int(candidates.passages[i])], told.get(int(candidates.passages[i]), {})
                signals = dict(zip(query.columns, candidates.scores[i].tolist(), strict=True))
                signals |= {name: float(fused.columns[i, fuser.names.index(name)]) for name in (MATCH, NAMES)}
                signals |= {EXACT: more["score"]} if more else {}
                proponents.append(
                    Proponent(
                        fact_id=fact.id,
                        rank=rank,
                        score=float(fused.scores[i]),
                        example_id=passage["example_id"],
                        start=passage["start"],
                        end=passage["end"],
                        signals=signals,
                        text=passage["text"],
                        source=passage["source"],
                        sha256=passage["sha256"],
                        coverage=fused.coverage[i],
                        names=fused.names[i],
                        tokens=tuple((begin, end, share) for begin, end, share in more.get("tokens", ())),
                        file=passage["file"],
                        row=passage["row"],
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


def approximations(query: Query) -> list[str]:
    """What this trace leaves out beyond what its index does."""
    searched = "approximate" in query.details.get("dense", {}) and not query.where
    return ["hop: scored for the other signals' candidates, proposes none itself"] if searched else []


def _join_parts(output: OutputFolder, blocks: int, rows: int) -> list[FileInfo]:
    """The blocks' parts as one file a format, one part in memory at a time."""
    names = [join(output.path, PARTS, f"{block:05d}") for block in range(blocks)]
    files = []
    with tempfile.TemporaryDirectory(dir=join(output.path, STAGES) if is_local(output.path) else None) as place:
        joined = Path(place) / "joined"
        for end in (".jsonl", ".trec"):
            with open(joined, "wb") as sink:
                sink.writelines(read_bytes(name + end) for name in names)
            files.append(publish(joined, output.path, f"rankings{end}", rows))
        with pq.ParquetWriter(joined, RANKINGS, compression="zstd") as writer:
            for name in names:
                writer.write_table(pq.read_table(localize(name + ".parquet"), schema=RANKINGS))
        return [*files, publish(joined, output.path, "rankings.parquet", rows)]


def _ask(requests: list[AuditRequest], details: dict[str, Any]) -> list[AskedRequest]:
    """What the index's last checkpoint says to the requests' prompts; unasked where it has none that continues text."""
    rows = [row for row in details.get("gradient", {}).get("checkpoints", []) if row["kind"] == "causal"]
    asked = ask_model(
        requests, resources.checkpoint(rows[-1]["path"]) if rows else None, rows[-1]["path"] if rows else ""
    )
    for request in asked:
        if request.said_by_model is False:
            log.warning("request %s: the model does not say any of its outputs by itself", request.request.request_id)
    if not rows:
        log.warning("requests: the index has no causal checkpoint, so no model was asked whether it says what they say")
    return asked


def run(config: TraceConfig, beam_args: tuple[str, ...] = ()) -> Manifest:
    """Writes the rankings to `config.output`. Raises ConfigError, or ArtifactMismatch for an index of another model."""
    index = read_manifest(config.index, "index")
    given, asked_for = config.facts or config.requests, read_requests(config.requests) if config.requests else []
    if config.requests:
        facts = [fact for request in asked_for for fact in facts_of(request)]
    else:
        facts = parse_facts(read_bytes(config.facts), config.facts)
    for fact in facts:
        text_query(fact, config.text_query)  # refuses before anything is written
    recorded = index.details["bm25"]
    if recorded["tokenizer"] != "word":
        found = resources.tokenizer_hash(resources.subword_tokenizer(recorded["tokenizer"]))
        remedy = "index again with this tokenizer, or put the old one back"
        require_match(f"BM25 tokenizer at {recorded['tokenizer']}", recorded["tokenizer_sha256"], found, remedy)
    if config.rerank and "gradient" not in index.details["signals"]:
        raise ConfigError(
            f"--rerank: expected an index with the gradient signal, found {', '.join(index.details['signals'])} in "
            f"{config.index}; index with --checkpoints, or trace without --rerank"
        )
    if "gradient" in index.details["signals"]:
        if index.details["gradient"]["feature_dtype"] == "none" and not config.scan:
            raise ConfigError(
                f"{config.index}: expected stored gradient features, found an index made with --feature_dtype none; "
                "trace with --scan, which makes them in one pass over the corpus"
            )
    elif config.scan:
        raise ConfigError(f"--scan: expected an index with the gradient signal, found none in {config.index}")
    if index.details.get("dense", {}).get("encoder") == "":
        for fact in facts:
            if len(fact.embedding) != index.details["dense"]["dim"]:
                raise ConfigError(
                    f"{given}: fact {fact.id!r}: expected an 'embedding' of {index.details['dense']['dim']} "
                    f"numbers, as the index was made of the corpus' own vectors, found {len(fact.embedding)}; give "
                    "one made by their encoder, or index with --encoder as well"
                )
    query = Query(absolute(config.index), index.details, config.text_query, config.top_k, config.scan, config.where)
    tokenize = tokenizer_of(query)
    for fact in facts:  # the gradient signal asks its model's tokenizer, in the workers
        for variant in asked(fact) if "gradient" not in query.signals else ():
            if not tokenize(variant.target):
                raise ConfigError(
                    f"{given}: fact {fact.id!r}: the target {variant.target!r} has no token; give a target with words"
                )
    log_runner(beam_args)
    plan = asdict(config) | {"facts_rows": [fact.to_row() for fact in facts], "index_details": index.details}
    plan.pop("quiet")
    with OutputFolder(config.output, plan) as output:
        search(query, facts, output, beam_args)
        if config.rerank:
            rerank(query, len(facts), output, beam_args, config.rerank)
        files = []
        if asked_for:
            told = requests_to_jsonl(_ask(asked_for, index.details))
            files.append(output.write(REQUESTS, told, len(asked_for)))
        blocks = fact_blocks(len(facts))
        shards = [Shard(f"{number:05d}", {"block": number}) for number in range(len(blocks))]
        records = run_stage("rank", shards, partial(rank_block, query=query, exactly=config.rerank), output, beam_args)
        proponents = total(records, "proponents")
        manifest = Manifest(
            kind="rankings",
            config=asdict(config),
            versions=library_versions(),
            counts={"in": len(facts), "kept": total(records, "in"), "removed": 0, "dead": 0},
            details={
                "index": query.index,
                "signals": query.signals,
                "rerank": config.rerank,
                "where": config.where,
                "fusion": index.details["fusion"],
                "proponents": proponents,
                "fact_ids": [fact.id for fact in facts],
                "requests": [request.request_id for request in asked_for],
                "approximations": [*index.details["approximations"], *approximations(query)],
            },
            files=[*files, *_join_parts(output, len(blocks), proponents)],
        )
        output.finish(manifest)
    progress.summary(
        "trace",
        {"folder": config.output, "facts": len(facts), "proponents": proponents, "signals": ", ".join(query.signals)},
    )
    return manifest
