"""What a search asks of which index, and what its stages read in common: facts, statistics, passages."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from attribution import bm25
from attribution.fusion import HOP, NAMES
from pipelines import resources
from pipelines.storage import STAGES, OutputFolder, join, read_bytes, verified
from schemas.facts import asked
from schemas.records import Fact

FACTS_PER_BLOCK = 256
NEAR = 30  # candidates by HOP: the next 70 held nothing more (track C of the benchmark)
FACTS = f"{STAGES}/facts.jsonl"


@dataclass(frozen=True)
class Query:
    """What a search asks of which index; small enough to travel with every shard."""

    index: str
    details: dict[str, Any]
    text_query: str
    top_k: int
    scan: bool = False  # make the passages' gradients anew instead of reading them
    where: str = ""  # FIELD=PATTERN: only passages whose field matches

    @property
    def signals(self) -> list[str]:
        return self.details["signals"]

    @property
    def columns(self) -> list[str]:
        """What every candidate is scored by: the signals, and what other names and passages about the fact say."""
        return [*self.signals, NAMES, HOP]

    def depth(self, column: str) -> int:
        """How many of the best by a column become candidates."""
        return min(self.top_k, NEAR) if column == HOP else self.top_k

    @property
    def shards(self) -> list[dict[str, Any]]:
        return self.details["shards"]


@dataclass(frozen=True)
class Candidates:
    """One fact's candidates over the whole index: ids `[n]`, `starts` `[n]`, raw `scores` `[n, columns]`."""

    passages: np.ndarray
    example_ids: list[str]
    starts: np.ndarray
    scores: np.ndarray


def write_facts(facts: list[Fact], output: OutputFolder) -> None:
    rows = [json.dumps(fact.to_row()) for fact in facts]
    output.write(FACTS, "\n".join(rows).encode(), len(facts))


@lru_cache(maxsize=2)
def read_facts(folder: str) -> list[Fact]:
    return [Fact.from_row(json.loads(line)) for line in read_bytes(join(folder, FACTS)).split(b"\n")]


def ask(facts: list[Fact]) -> tuple[list[Fact], list[int]]:
    """(every fact's variants one after another, where each fact's begin and the last one's end)."""
    variants, first = [], [0]
    for fact in facts:
        variants += asked(fact)
        first.append(len(variants))
    return variants, first


def combine(scores: np.ndarray, facts: list[Fact]) -> np.ndarray:
    """`[facts, rows]` of scores of their variants `[variants, rows]`: the mean or the highest, as each fact says."""
    _, first = ask(facts)
    if first[-1] == len(facts):
        return scores
    return np.stack(
        [
            scores[begin:end].max(axis=0) if fact.combine == "max" else scores[begin:end].mean(axis=0)
            for fact, begin, end in zip(facts, first, first[1:], strict=False)
        ]
    )


@lru_cache(maxsize=2)
def read_statistics(index: str, name: str, num_passages: int, total_length: int) -> bm25.Statistics:
    return bm25.Statistics.load(verified(index, name), num_passages, total_length)


def statistics_of(query: Query) -> bm25.Statistics:
    recorded = query.details["bm25"]
    return read_statistics(query.index, recorded["statistics"], recorded["num_passages"], recorded["total_length"])


def tokenizer_of(query: Query) -> bm25.Tokenize:
    recorded = query.details["bm25"]
    return resources.bm25_tokenizer(recorded["tokenizer"], recorded["stemming"])


def fact_blocks(num_facts: int) -> list[slice]:
    return [slice(i, min(i + FACTS_PER_BLOCK, num_facts)) for i in range(0, num_facts, FACTS_PER_BLOCK)]


def tie_order(ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Each row's place in the order of ids, then starts."""
    order = np.empty(len(ids), dtype=np.int64)
    order[sorted(range(len(ids)), key=lambda i: (ids[i], starts[i]))] = np.arange(len(ids))
    return order


def read_passages(query: Query, ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """The passages of these ids, one shard's file after another."""
    found: dict[int, dict[str, Any]] = {}
    for shard in query.shards:
        rows = ids[(ids >= shard["offset"]) & (ids < shard["offset"] + shard["rows"])]
        if len(rows):
            table = pq.read_table(verified(query.index, f"examples/{shard['name']}.parquet"))
            found |= dict(zip(rows.tolist(), table.take(rows - shard["offset"]).to_pylist(), strict=True))
    return found
