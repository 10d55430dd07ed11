"""The fusion weights of a new index: `index` asks it for facts cut from its own passages (attribution/fusion.py).

examples/ -> a seeded sample -> pseudo-facts -> search -> candidates with all signals' scores -> weights
"""

import heapq
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attribution.curvature import SecondMoment
from attribution.fusion import GRID, fit_weights
from attribution.pseudo_facts import make_pseudo_facts, sample_key
from attribution.sequences import SENTINEL
from pipelines import resources
from pipelines.config import IndexConfig
from pipelines.gradient import curvature_file, write_moment
from pipelines.search import (
    QUERY_MOMENTS,
    Query,
    fact_blocks,
    merge_block,
    read_passages,
    read_statistics,
    search,
    statistics_of,
    tokenizer_of,
)
from pipelines.storage import OutputFolder, exists, join, localize, verified
from schemas.facts import text_query
from schemas.manifest import FileInfo
from schemas.records import Passage
from schemas.tables import SAMPLE

# A passage that holds this share of a pseudo-fact's words may state the same: it is no competitor in the fit.
MAY_STATE_IT = 0.9


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


def fit_fusion(
    output: OutputFolder, details: dict[str, Any], config: IndexConfig, beam_args: tuple[str, ...]
) -> tuple[dict[str, Any], list[FileInfo]]:
    """The fusion's weights, fitted by searching the new index for facts cut from its own passages.

    With them the files of what the facts' gradients told: their curvature, for traces of a few facts.
    """
    read_statistics.cache_clear()  # this folder may have held another index before
    statistics = statistics_of(Query(output.path, details, "auto", top_k=100))
    passages = read_sample(output.path, details, 2 * config.num_pseudo_facts)
    # A chat's text holds names of roles, which nobody asks for.
    facts = make_pseudo_facts([passage for passage in passages if not passage.parts], statistics.idf, config.seed)
    if "gradient" in details["signals"]:
        rows = details["gradient"]["checkpoints"]
        limit, tokenizer = min(row["max_tokens"] for row in rows), resources.subword_tokenizer(rows[0]["path"])
        if rows[0]["kind"] == "seq2seq":  # plain text is learned by filling in what a sentinel stands for
            facts = [replace(fact, prompt=f"{fact.prompt} {SENTINEL.format(0)}") for fact in facts]
        facts = [fact for fact in facts if len(tokenizer(fact.prompt + fact.target).input_ids) < limit]
    facts = facts[: config.num_pseudo_facts]
    # What cannot be searched for these facts is left out of the fit, and given the least weight there is.
    unread = ["gradient"] if details.get("gradient", {}).get("feature_dtype") == "none" else []
    unread += ["dense"] if details.get("dense", {}).get("encoder") == "" else []
    signals = [signal for signal in details["signals"] if signal not in unread]
    if len(signals) == 1 or not facts:
        fitted = _with_least(details["signals"], signals, [1.0 / len(signals)] * len(signals))
        return fitted | {"fit": {"facts": len(facts)}}, _keep_curvature(output, details)
    query = Query(output.path, details | {"signals": signals}, "auto", top_k=100)
    search(query, facts, output, beam_args, "pseudo-")
    tokenize = tokenizer_of(query)
    candidates, labels, competing = [], [], []
    for number in range(len(fact_blocks(len(facts)))):
        merged = list(merge_block(query, output.path, number, len(facts)))
        texts = read_passages(query, np.unique(np.concatenate([found.passages for found in merged])))
        for found in merged:
            fact = facts[len(labels)]
            own = (fact.proponents[0], int(fact.id.rsplit("/", 1)[1]))
            keys = list(zip(found.example_ids, found.starts.tolist(), strict=True))
            words = tokenize(text_query(fact, query.text_query))
            held = [statistics.coverage(words, tokenize(texts[i]["text"])) for i in found.passages.tolist()]
            candidates.append(found.scores)
            labels.append(keys.index(own) if own in keys else -1)
            competing.append(np.array(held) < MAY_STATE_IT)
    weights, record = fit_weights(candidates, labels, competing)
    fitted = _with_least(details["signals"], signals, weights.tolist())
    return fitted | {"fit": record}, _keep_curvature(output, details)


def _with_least(signals: list[str], fitted: list[str], weights: list[float]) -> dict[str, Any]:
    """The weights of all signals: those that were not fitted have 1/GRID each."""
    by_name = dict(zip(fitted, weights, strict=True))
    rest = 1 - (len(signals) - len(fitted)) / GRID
    return {"signals": signals, "weights": [by_name[s] * rest if s in by_name else 1 / GRID for s in signals]}


def _keep_curvature(output: OutputFolder, details: dict[str, Any]) -> list[FileInfo]:
    """The pseudo-facts' second moments by checkpoint; none of them where there were no facts."""
    files = []
    for number, row in enumerate(details.get("gradient", {}).get("checkpoints", [])):
        moment = SecondMoment.zero(row["widths"])
        found = join(output.path, QUERY_MOMENTS.format(number))
        if exists(found):
            moment = SecondMoment.load(Path(localize(found)))
        files.append(write_moment(output, curvature_file(row, "queries"), moment))
    return files
