"""A seeded sample of an index' passages, and what the gradients of questions look like, by facts cut from them.

examples/ -> a seeded sample -> pseudo-facts (attribution/pseudo_facts.py) -> their gradients -> second moments

A trace of a few facts has not enough of them to know the curvature of questions; these are added to its own.
"""

import heapq
import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attribution.curvature import SecondMoment
from attribution.pseudo_facts import make_pseudo_facts, sample_key
from attribution.sequences import SENTINEL
from pipelines import resources
from pipelines.config import IndexConfig
from pipelines.gradient import curvature_file, is_mixed, write_moment
from pipelines.query import Query, read_facts, read_statistics, statistics_of, write_facts
from pipelines.search import QUERY_MOMENTS, embed_queries, gradient_shards
from pipelines.stage import run_stage
from pipelines.storage import OutputFolder, join, localize, verified
from schemas.manifest import FileInfo
from schemas.records import Passage
from schemas.tables import SAMPLE


def sample_places(
    folder: str, shards: list[dict[str, Any]], seed: int, count: int, known: pa.Table | None = None
) -> pa.Table:
    """Where a seeded sample of the shards' passages stands (SAMPLE), in its order: no order of shards has a say in it.

    `known` is that of other shards, which are not read again.
    """
    chosen = [tuple(row.values()) for row in known.to_pylist()] if known else []
    for shard in shards:
        table = pq.read_table(_examples(folder, shard["name"]), columns=["example_id", "start"])
        places = zip(table["example_id"].to_pylist(), table["start"].to_pylist(), strict=True)
        keys = ((sample_key(seed, *place), shard["name"], row) for row, place in enumerate(places))
        chosen = heapq.nsmallest(count, itertools.chain(chosen, keys))
    return pa.table([list(column) for column in zip(*chosen, strict=True)], schema=SAMPLE)


def sample_passages(folder: str, places: pa.Table) -> list[Passage]:
    """The passages at the places of a sample."""
    passages, chosen = {}, list(zip(places["shard"].to_pylist(), places["row"].to_pylist(), strict=True))
    for name in sorted({name for name, _ in chosen}):
        rows = [row for other, row in chosen if other == name]
        found = pq.read_table(_examples(folder, name)).take(rows).to_pylist()
        passages |= {(name, row): Passage(**fields) for row, fields in zip(rows, found, strict=True)}
    return [passages[place] for place in chosen]


def read_sample(folder: str, details: dict[str, Any], count: int) -> list[Passage]:
    """The first `count` passages of the sample that an index keeps."""
    return sample_passages(folder, pq.read_table(verified(folder, details["sample"])).slice(0, count))


def _examples(folder: str, shard: str) -> str:
    return verified(folder, f"examples/{shard}.parquet")


def query_curvature(
    output: OutputFolder, details: dict[str, Any], config: IndexConfig, beam_args: tuple[str, ...]
) -> list[FileInfo]:
    """Writes the second moments of the pseudo-facts' gradients by checkpoint; zeros where no fact could be cut.

    Nothing where the index does not mix them.
    """
    read_statistics.cache_clear()  # this folder may have held another index before
    if "gradient" not in details or not is_mixed(details):
        return []
    rows = details["gradient"]["checkpoints"]
    query = Query(output.path, details, "auto", top_k=1)
    passages = read_sample(output.path, details, 2 * config.num_pseudo_facts)
    # A chat's text holds names of roles, which nobody asks for.
    plain = [passage for passage in passages if not passage.parts]
    facts = make_pseudo_facts(plain, statistics_of(query).idf, config.seed)
    limit, tokenizer = min(row["max_tokens"] for row in rows), resources.subword_tokenizer(rows[0]["path"])
    if rows[0]["kind"] == "seq2seq":  # plain text is learned by filling in what a sentinel stands for
        facts = [replace(fact, prompt=f"{fact.prompt} {SENTINEL.format(0)}") for fact in facts]
    facts = [fact for fact in facts if len(tokenizer(fact.prompt + fact.target).input_ids) < limit]
    facts = facts[: config.num_pseudo_facts]
    if facts:
        write_facts(facts, output)
        read_facts.cache_clear()  # this folder may have held others before
        run_stage("pseudo-queries", gradient_shards(query), partial(embed_queries, query=query), output, beam_args)
    files = []
    for number, row in enumerate(rows):
        found = join(output.path, QUERY_MOMENTS.format(number))
        moment = SecondMoment.load(Path(localize(found))) if facts else SecondMoment.zero(row["widths"])
        files.append(write_moment(output, curvature_file(row, "queries"), moment))
    return files
