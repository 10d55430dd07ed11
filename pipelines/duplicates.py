"""Near-duplicates of the passages found, over a whole index: a Beam stage that a verb calls.

seeds (passages found) + the index's examples/ -> find (a shard: a shard of the index) -> matches -> groups

A worker holds the seeds' signatures, made once, and one shard's texts.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attribution.duplicates import THRESHOLD, Match, Seeds, group
from pipelines import progress
from pipelines.stage import Done, Shard, run_stage
from pipelines.storage import STAGES, OutputFolder, join, read_bytes, verified
from schemas.tables import MATCHES, parquet_bytes

FOUND = f"{STAGES}/matches"
SEEDS = f"{FOUND}/seeds.jsonl"


@lru_cache(maxsize=1)
def _seeds(folder: str, threshold: float) -> tuple[list[str], Seeds]:
    """The documents that the seeds are of, and the seeds."""
    rows = [json.loads(line) for line in read_bytes(join(folder, SEEDS)).splitlines()]
    return [row["example_id"] for row in rows], Seeds([row["text"] for row in rows], threshold)


def find_duplicates_shard(spec: dict[str, Any], folder: str, out: Path) -> Done:
    """The passages of one shard that are near-duplicates of seeds of other documents, each with its nearest seed.

    A passage of a document that seeds are of has a row for each of its seeds, which tells whose groups are one.
    `spec` has the shard's `name` and `rows`, the `index`'s folder and the `threshold`; the seeds are in `folder`.
    """
    documents, seeds = _seeds(folder, spec["threshold"])
    of_seeds = set(documents)
    table = pq.read_table(verified(spec["index"], f"examples/{spec['name']}.parquet"))
    rows, found, similarities = [], [], []
    texts = zip(table["example_id"].to_pylist(), table["text"].to_pylist(), strict=True)
    with progress.bar(f"duplicates, shard {spec['name']}", spec["rows"], "passages") as advance:
        for row, (example_id, text) in enumerate(texts):
            near = [(documents[seed], close) for seed, close in seeds.near(text) if documents[seed] != example_id]
            for document, close in near if example_id in of_seeds else near[:1]:
                rows.append(row)
                found.append(document)
                similarities.append(close)
            advance(1)
    if not rows:
        return Done({"in": spec["rows"], "matches": 0}, {})
    table = table.take(pa.array(rows, pa.int64()))
    columns = [pa.array(found, pa.string()), pa.array(similarities, pa.float64()), *table.columns]
    name = f"{FOUND}/{spec['name']}.parquet"
    (out / FOUND).mkdir(parents=True)
    (out / name).write_bytes(parquet_bytes(pa.table(columns, schema=MATCHES)))
    return Done({"in": spec["rows"], "matches": len(rows)}, {name: len(rows)})


def find_duplicates(
    index: str,
    shards: list[dict[str, Any]],
    seeds: Iterable[tuple[str, str]],
    output: OutputFolder,
    threshold: float = THRESHOLD,
    beam_args: tuple[str, ...] = (),
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """(the group of every document that has a near-duplicate, the rows of MATCHES by document, passage and seed).

    `seeds` are (example id, text) of passages, `shards` the index's as its manifest has them. The order of either
    changes nothing.
    """
    lines = [json.dumps({"example_id": i, "text": text}) + "\n" for i, text in sorted(set(seeds))]
    output.write(SEEDS, "".join(lines).encode(), len(lines))
    _seeds.cache_clear()
    specs = [Shard(s["name"], {**s, "index": index, "threshold": threshold}) for s in shards]
    records = run_stage("duplicates", specs, find_duplicates_shard, output, beam_args)
    files = [info.name for record in records for info in record.files]
    rows = [row for name in files for row in pq.read_table(join(output.path, name)).to_pylist()]
    rows.sort(key=lambda row: (row["example_id"], row["start"], row["seed"], -row["similarity"]))
    return group(Match(row["seed"], row["example_id"], row["similarity"]) for row in rows), rows
