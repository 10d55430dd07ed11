"""Scorers over the passages found: a Beam stage that a verb calls.

passages -> score (a shard: at most SHARD passages) -> labels and failures, dead_letters/score-<shard>.jsonl
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from attribution.scorers import Failure, Scorer, load_scorer, require_results, score_texts
from pipelines import progress
from pipelines.stage import Done, Shard, all_files, run_stage
from pipelines.storage import STAGES, OutputFolder, join, read_bytes
from schemas.errors import ConfigError
from schemas.jsonl import jsonl_bytes
from schemas.manifest import FileInfo
from schemas.records import DeadLetter, Passage
from schemas.tables import PASSAGES, parquet_bytes, to_table

SHARD = 1_000
TO_SCORE, SCORED = f"{STAGES}/to-score", f"{STAGES}/scored"


@lru_cache(maxsize=8)
def scorer(spec: str, device: str) -> Scorer:
    return load_scorer(spec, device)


def score_shard(spec: dict[str, Any], folder: str, out: Path) -> Done:
    """The labels of one shard's passages, a line for each, and a dead letter for each that a scorer could not score.

    `spec` has the shard's `name` and `rows`, the `scorers` and the `device`; the passages are in `folder`.
    """
    name, passages = spec["name"], pq.read_table(join(folder, f"{TO_SCORE}/{spec['name']}.parquet")).to_pylist()
    scored: list[dict[str, Any]] = [{"labels": [], "not_scored": []} for _ in passages]
    letters, failed = [], {}
    with progress.bar(f"score, shard {name}", len(passages) * len(spec["scorers"]), "passages") as advance:
        for given in spec["scorers"]:
            loaded = scorer(given, spec["device"])
            found, failures = score_texts(loaded, [passage["text"] for passage in passages])
            for row, labels in zip(scored, found, strict=True):
                row["labels"] += [label.to_row() for label in labels]
            for i, failure in failures.items():
                scored[i]["not_scored"].append({"scorer": loaded.name, "reason": failure.reason})
            failed[given] = [asdict(failure) for failure in failures.values()]
            letters += [_letter(passages[i], loaded.name, failure.reason) for i, failure in failures.items()]
            advance(len(passages))
    written = {f"{SCORED}/{name}.jsonl": scored}
    if letters:
        written[f"dead_letters/score-{name}.jsonl"] = [letter.to_row() for letter in letters]
    for path, rows in written.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(jsonl_bytes(rows))
    counts = {"in": len(passages), "dead": len(letters)}
    return Done(counts, {path: len(rows) for path, rows in written.items()}, {"failed": failed})


def _letter(passage: dict[str, Any], name: str, reason: str) -> DeadLetter:
    told = f"example {passage['example_id']!r}, from character {passage['start']}: scorer {name}: {reason}"
    return DeadLetter(passage["file"], passage["row"], "score", told)


def load_scorers(specs: Sequence[str], device: str = "cpu") -> list[Scorer]:
    """The scorers, so that what is wrong with one is told before anything is written. Raises ConfigError."""
    loaded = [scorer(spec, device) for spec in specs]
    names = [one.name for one in loaded]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"scorer {name}: expected once, found {names.count(name)} times; leave one")
    return loaded


def score_passages(
    passages: Sequence[Passage],
    scorers: Sequence[str],
    output: OutputFolder,
    device: str = "cpu",
    beam_args: tuple[str, ...] = (),
) -> tuple[list[dict[str, Any]], list[FileInfo]]:
    """(of each passage, in the given order, its `labels`, scorer by scorer, and who could not score it, with
    the reasons: `not_scored`; the files of dead letters).

    Raises ConfigError where a scorer gave no passage anything that is a result.
    """
    shards = []
    for start in range(0, len(passages), SHARD):
        name, rows = f"{start // SHARD:05d}", [asdict(passage) for passage in passages[start : start + SHARD]]
        output.write(f"{TO_SCORE}/{name}.parquet", parquet_bytes(to_table(rows, PASSAGES)), len(rows))
        shards.append(Shard(name, {"name": name, "rows": len(rows), "scorers": list(scorers), "device": device}))
    records = run_stage("score", shards, score_shard, output, beam_args)
    for given in scorers:
        failures = [Failure(**row) for record in records for row in record.facts["failed"][given]]
        require_results(given, len(passages), failures)
    lines = [line for s in shards for line in read_bytes(join(output.path, f"{SCORED}/{s.name}.jsonl")).splitlines()]
    return [json.loads(line) for line in lines], all_files(records)
