"""A small corpus in several files, and what the in-memory runner makes of it: the others are compared with that."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import index, trace
from pipelines.config import TraceConfig
from pipelines.stage import METRICS
from schemas.manifest import Manifest
from schemas.rankings import rankings_from_jsonl
from schemas.records import Proponent
from tests.pipelines.conftest import (  # noqa: F401 (fixtures)
    checkpoints,
    corpus,
    corpus_rows,
    encoder,
    fact_rows,
    index_config,
    room,
    write_jsonl,
)

RECORDS, REFUSED, FACTS = 52, 2, 4


@dataclass(frozen=True)
class Made:
    """What one setting of the runner made: the index's manifest, its metrics, the rankings by fact, best first."""

    manifest: Manifest
    metrics: dict[str, dict]
    rankings: dict[str, list[Proponent]]


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """Three corpus files, one compressed, with a record that is no JSON and one whose id stands in another file."""
    folder, rows = tmp_path_factory.mktemp("files"), corpus_rows()
    write_jsonl(folder / "a.jsonl", rows[:20])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in rows[20:40])))
    write_jsonl(folder / "c.jsonl", [*rows[40:], rows[0]])
    with open(folder / "c.jsonl", "a") as file:
        file.write("no record\n")
    write_jsonl(folder / "facts", fact_rows()[:FACTS])
    return folder


@pytest.fixture(scope="session")
def make(files, checkpoints, encoder) -> Callable[[Path, tuple[str, ...]], Made]:  # noqa: F811
    """Indexes the corpus and traces the facts with these arguments for Beam."""

    def made(folder: Path, beam_args: tuple[str, ...]) -> Made:
        config = index_config(
            str(files / "*.jsonl*"), folder / "index", str(Path(checkpoints, "step-000200")), encoder,
            passages_per_shard=8, max_dead_fraction=0.05,
        )  # fmt: skip
        manifest = index.run(config, beam_args)
        asked = TraceConfig(index=str(folder / "index"), facts=str(files / "facts"), output=str(folder / "rankings"))
        trace.run(asked, beam_args)
        rankings: dict[str, list[Proponent]] = {}
        for proponent in rankings_from_jsonl((folder / "rankings/rankings.jsonl").read_bytes()):
            rankings.setdefault(proponent.fact_id, []).append(proponent)
        return Made(manifest, json.loads((folder / "index" / METRICS).read_text()), rankings)

    return made


@pytest.fixture(scope="session")
def in_memory(make, tmp_path_factory) -> Made:
    """What the direct runner makes of it in this process."""
    return make(tmp_path_factory.mktemp("in-memory"), ("--runner=direct",))
