"""The fusion weights of a new index: `index` asks it for facts cut from its own passages (attribution/fusion.py).

examples/ -> a seeded sample -> pseudo-facts -> search -> candidates with all signals' scores -> weights
"""

import heapq
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from attribution.fusion import fit_weights
from attribution.pseudo_facts import make_pseudo_facts, sample_key
from pipelines import resources
from pipelines.config import IndexConfig
from pipelines.search import Query, fact_blocks, merge_block, read_passages, read_statistics, search, tokenizer_of
from pipelines.storage import OutputFolder, join, localize
from schemas.facts import text_query
from schemas.records import Passage

# A passage that holds this share of a pseudo-fact's words may state the same: it is no competitor in the fit.
MAY_STATE_IT = 0.9


def _sample_passages(folder: str, shards: list[dict[str, Any]], config: IndexConfig) -> list[Passage]:
    """The passages to cut pseudo-facts from: a seeded sample of the whole corpus, twice as many as needed."""

    def rows():
        for shard in shards:
            for row in pq.read_table(localize(join(folder, "examples", f"{shard['name']}.parquet"))).to_pylist():
                yield Passage(**row)

    return heapq.nsmallest(2 * config.num_pseudo_facts, rows(), key=lambda passage: sample_key(config.seed, passage))


def fit_fusion(
    output: OutputFolder, details: dict[str, Any], config: IndexConfig, beam_args: tuple[str, ...]
) -> dict[str, Any]:
    """The fusion's weights, fitted by searching the new index for facts cut from its own passages."""
    read_statistics.cache_clear()  # this folder may have held another index before
    statistics = read_statistics(output.path, details["bm25"]["num_passages"], details["bm25"]["total_length"])
    passages = _sample_passages(output.path, details["shards"], config)
    facts = make_pseudo_facts(passages, statistics.idf, config.seed)
    if "gradient" in details["signals"]:
        rows = details["gradient"]["checkpoints"]
        limit, tokenizer = min(row["max_tokens"] for row in rows), resources.subword_tokenizer(rows[0]["path"])
        facts = [fact for fact in facts if len(tokenizer(fact.prompt + fact.target).input_ids) < limit]
    facts = facts[: config.num_pseudo_facts]
    signals = details["signals"]
    if len(signals) == 1 or not facts:
        return {"signals": signals, "weights": [1.0 / len(signals)] * len(signals), "fit": {"facts": len(facts)}}
    query = Query(output.path, details, "auto", top_k=100)
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
    return {"signals": signals, "weights": weights.tolist(), "fit": record}
