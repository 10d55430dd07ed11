"""Near-duplicates of the passages found, over a whole index: a Beam stage that a verb calls.

seeds (passages found) + the index's examples/ -> find (a shard: a shard of the index) -> matches -> groups

A worker holds the seeds' signatures, made once, and one shard's texts.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attribution.duplicates import THRESHOLD, Match, Near, Rarity, Seeds, group
from pipelines import progress, resources
from pipelines.query import read_statistics
from pipelines.stage import Done, Shard, run_stage
from pipelines.storage import STAGES, OutputFolder, join, read_bytes, verified
from schemas.jsonl import jsonl_bytes
from schemas.tables import MATCHES, parquet_bytes

FOUND = f"{STAGES}/matches"
SEEDS = f"{FOUND}/seeds.jsonl"
RENAMED = 10  # copies of a seed with another name that a person is shown: a template may have thousands


@lru_cache(maxsize=1)
def _seeds(folder: str, index: str, bm25: str, threshold: float) -> tuple[list[dict[str, Any]], Seeds]:
    """The seeds' documents and requests, and the seeds; `bm25` is what the index records of its signal, as JSON."""
    rows = [json.loads(line) for line in read_bytes(join(folder, SEEDS)).splitlines()]
    told = json.loads(bm25)
    statistics = read_statistics(index, told["statistics"], told["num_passages"], told["total_length"])
    rarity = Rarity(statistics, resources.bm25_tokenizer(told["tokenizer"], told["stemming"]))
    return rows, Seeds([row["text"] for row in rows], rarity, threshold)


def _told(near: list[Near], seeds: list[dict[str, Any]], is_seed: bool) -> list[Near]:
    """Which of its seeds a passage is told with: of another document the nearest for each request, one without another
    name before all with one; of a document that seeds are of all without another name, which tell whose groups are one.
    """
    if is_seed:
        return [one for one in near if not one.renamed]
    told, requests = [], set()
    for one in sorted(near, key=lambda one: one.renamed):  # stable: the nearest first
        if not requests.issuperset(seeds[one.seed]["requests"]):
            told.append(one)
            requests.update(seeds[one.seed]["requests"])
    return told


def _nearest_renamed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without those of another name that stand behind the RENAMED nearest of their seed."""
    kept, counts = [], {}
    for row in sorted(rows, key=lambda row: (-row["similarity"], row["example_id"], row["start"])):
        if row["renamed"]:
            counts[row["seed"]] = counts.get(row["seed"], 0) + 1
        if not row["renamed"] or counts[row["seed"]] <= RENAMED:
            kept.append(row)
    return kept


def find_duplicates_shard(spec: dict[str, Any], folder: str, out: Path) -> Done:
    """The passages of one shard that are near-duplicates of seeds of other documents, a row for each seed it is told
    with.

    `spec` has the shard's `name` and `rows`, the `index`'s folder and what it records of `bm25`, and the `threshold`;
    the seeds are in `folder`.
    """
    asked, seeds = _seeds(folder, spec["index"], spec["bm25"], spec["threshold"])
    of_seeds = {seed["example_id"] for seed in asked}
    table = pq.read_table(verified(spec["index"], f"examples/{spec['name']}.parquet"))
    matches = []
    texts = zip(*(table[name].to_pylist() for name in ("example_id", "start", "text")), strict=True)
    with progress.bar(f"duplicates, shard {spec['name']}", spec["rows"], "passages") as advance:
        for place, (example_id, start, text) in enumerate(texts):
            near = [one for one in seeds.near(text) if asked[one.seed]["example_id"] != example_id]
            for one in _told(near, asked, example_id in of_seeds):
                match = {"seed": asked[one.seed]["example_id"], "similarity": one.similarity, "renamed": one.renamed}
                matches.append(match | {"place": place, "example_id": example_id, "start": start})
            advance(1)
    matches = _nearest_renamed(matches)
    if not matches:
        return Done({"in": spec["rows"], "matches": 0}, {})
    table = table.take(pa.array([match["place"] for match in matches], pa.int64()))
    columns = [pa.array([match[name] for match in matches]) for name in ("seed", "similarity", "renamed")]
    name = f"{FOUND}/{spec['name']}.parquet"
    (out / FOUND).mkdir(parents=True)
    (out / name).write_bytes(parquet_bytes(pa.table([*columns, *table.columns], schema=MATCHES)))
    return Done({"in": spec["rows"], "matches": len(matches)}, {name: len(matches)})


def find_duplicates(
    index: str,
    details: Mapping[str, Any],
    seeds: Iterable[tuple[str, str, str]],
    output: OutputFolder,
    threshold: float = THRESHOLD,
    beam_args: tuple[str, ...] = (),
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """(the group of every document that has a near-duplicate, the rows of MATCHES by document, passage and seed).

    `details` are the index's, as its manifest has them; `seeds` are (request id, example id, text) of passages. The
    order of shards or seeds changes nothing. A row in which a name stands for another (`renamed`) is in no group.
    """
    requests: dict[tuple[str, str], set[str]] = {}
    for request_id, example_id, text in seeds:
        requests.setdefault((example_id, text), set()).add(request_id)
    rows = [{"example_id": i, "text": text, "requests": sorted(r)} for (i, text), r in sorted(requests.items())]
    output.write(SEEDS, jsonl_bytes(rows), len(rows))
    _seeds.cache_clear()
    told = {"index": index, "bm25": json.dumps(details["bm25"]), "threshold": threshold}
    specs = [Shard(shard["name"], shard | told) for shard in details["shards"]]
    records = run_stage("duplicates", specs, find_duplicates_shard, output, beam_args)
    files = [info.name for record in records for info in record.files]
    found = [row for name in files for row in pq.read_table(join(output.path, name)).to_pylist()]
    found = sorted(
        _nearest_renamed(found), key=lambda row: (row["example_id"], row["start"], row["seed"], -row["similarity"])
    )
    return group(Match(row["seed"], row["example_id"], row["similarity"]) for row in found if not row["renamed"]), found
