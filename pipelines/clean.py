"""`clean`: a corpus and approved removals become a new corpus, and what was taken out with the reason.

  corpus files -> scan -> match (every removal must be found, unchanged) -> write (a shard: a file)
       -> corpus/<same file names>, removed/<file>.jsonl, dead_letters/, manifest.json

A kept JSONL record keeps its bytes, a kept Parquet row every column.
"""

import json
import logging
import os
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import progress
from pipelines.config import CleanConfig
from pipelines.corpus import (
    COMPRESSIONS,
    JSONL,
    PARQUET,
    CorpusFormat,
    Record,
    base_folder,
    list_corpus,
    open_parquet,
    read_records,
    relative_name,
    scan,
    split_suffix,
)
from pipelines.stage import Done, Shard, all_files, library_versions, log_runner, run_stage, total
from pipelines.storage import STAGES, OutputFolder, join, read_bytes
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.manifest import Manifest
from schemas.records import Removal
from schemas.removals import approved, parse_removals, removals_to_jsonl

log = logging.getLogger(__name__)
REMOVALS = f"{STAGES}/removals.jsonl"


@lru_cache(maxsize=2)
def _removals(folder: str) -> dict[str, Removal]:
    path = join(folder, REMOVALS)
    return {removal.example_id: removal for removal in parse_removals(read_bytes(path), path)}


def match_shard(spec: dict[str, Any], folder: str, out: Path, format: CorpusFormat, base: str) -> Done:
    """Which removals stand in one file, and with which content."""
    removals = _removals(folder)
    found = {
        record.id: record.sha256
        for record in read_records(spec["path"], format, base)
        if isinstance(record, Record) and record.row not in spec["repeated"] and record.id in removals
    }
    return Done({}, {}, {"found": found})


def _refuse_unmatched(removals: list[Removal], found: dict[str, str], path: str) -> None:
    unknown = [r.example_id for r in removals if r.example_id not in found]
    changed = [r.example_id for r in removals if found.get(r.example_id, r.sha256) != r.sha256]
    for ids, what in (
        (unknown, "stand nowhere in the corpus"),
        (changed, "have another text in the corpus than the one that was judged"),
    ):
        if ids:
            raise ArtifactMismatch(
                f"{path}: expected every approved removal to be in the corpus as it was judged, found {len(ids)} that "
                f"{what} ({', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}); was the corpus changed, or is it "
                "another one? Index and trace this corpus, and flag again"
            )


def write_shard(spec: dict[str, Any], folder: str, out: Path, format: CorpusFormat, base: str) -> Done:
    """One file without its removed records, in the same format and compression; what was taken out beside it."""
    removals, path = _removals(folder), spec["path"]
    suffix, compression = split_suffix(path)
    name = f"corpus/{relative_name(path, base)}"
    target = out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    repeated, kept, removed = set(spec["repeated"]), [], []
    with progress.bar(f"clean, file {spec['file']}", None, "records") as advance, open(target, "wb") as file:
        sink: Any = pa.CompressedOutputStream(file, COMPRESSIONS[compression]) if compression else file
        for record in read_records(path, format, base):
            if isinstance(record, Record) and record.row not in repeated:
                if record.id in removals:
                    removed.append(record)
                else:
                    kept.append(record.row)
                    if suffix not in PARQUET:
                        sink.write(record.raw)
                advance(1)
        if compression:
            sink.close()
    if suffix in PARQUET:
        _write_parquet(path, target, format, set(kept))
    elif suffix not in JSONL and not kept:
        os.remove(target)  # a text file is one document: taken out whole
    written = {name: len(kept)} if target.exists() else {}
    if removed:
        taken = out / f"removed/{spec['file']:05d}.jsonl"
        taken.parent.mkdir()
        rows = [_removed_row(record, removals[record.id], path) for record in removed]
        taken.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
        written[f"removed/{taken.name}"] = len(rows)
    return Done({"kept": len(kept), "removed": len(removed)}, written)


def _removed_row(record: Record, removal: Removal, path: str) -> dict[str, Any]:
    """What was taken out: its text and, of JSONL and text files, its bytes; where it stood, and why."""
    raw = record.raw.decode() if record.raw is not None else None
    return {"id": record.id, "text": record.text, "file": path, "row": record.row, "raw": raw} | {
        name: getattr(removal, name) for name in ("reason", "decided_by", "decided_at", "fact_ids")
    }


def _write_parquet(path: str, target: Path, format: CorpusFormat, kept: set[int]) -> None:
    """The kept rows (counted from 1) of a Parquet file, row group by row group, schema and metadata as they were."""
    source, row = open_parquet(path, format), 0
    with pq.ParquetWriter(target, source.schema_arrow, compression=_codec(source)) as writer:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            mask = pa.array([row + i in kept for i in range(1, len(table) + 1)], pa.bool_())
            row += len(table)
            writer.write_table(table.filter(mask))


def _codec(source: pq.ParquetFile) -> str:
    metadata = source.metadata
    if not metadata.num_row_groups or not metadata.num_columns:
        return "zstd"
    codec = metadata.row_group(0).column(0).compression.lower()
    return "none" if codec == "uncompressed" else codec


def run(config: CleanConfig, beam_args: tuple[str, ...] = ()) -> Manifest:
    """Writes the new corpus to `config.output`; the same removals give the same bytes.

    Raises ConfigError (nothing approved), ArtifactMismatch (a removal for an unknown id or a changed text) or
    FailureBudgetExceeded, leaving nothing behind.
    """
    corpus_files = list_corpus(config.corpus)
    removals = approved(parse_removals(read_bytes(config.removals), config.removals))
    if not removals:
        raise ConfigError(
            f"{config.removals}: expected at least one removal whose decision is 'approved', found none; edit the "
            "file, or run flag with --approve all --by NAME"
        )
    log_runner(beam_args)
    format, base = CorpusFormat(config.id_field, config.text_field), base_folder(config.corpus)
    plan = asdict(config) | {"files": corpus_files, "approved": [removal.to_row() for removal in removals]}
    plan.pop("quiet")
    with OutputFolder(config.output, plan) as output:
        output.write(REMOVALS, removals_to_jsonl(removals), len(removals))
        _removals.cache_clear()
        scanned = scan(corpus_files, format, base, output, config.max_dead_fraction, beam_args)
        shards = [
            Shard(s.name, s.spec | {"repeated": scanned.repeated.get(s.spec["file"], [])}) for s in scanned.shards
        ]
        matched = run_stage("match", shards, partial(match_shard, format=format, base=base), output, beam_args)
        found = {example_id: sha for record in matched for example_id, sha in record.facts["found"].items()}
        _refuse_unmatched(removals, found, config.removals)
        records = run_stage("write", shards, partial(write_shard, format=format, base=base), output, beam_args)
        counts = {
            "in": scanned.num_in,
            "kept": total(records, "kept"),
            "removed": total(records, "removed"),
            "dead": scanned.num_dead,
        }
        settings = {name: value for name, value in asdict(config).items() if name != "output"}
        manifest = Manifest(
            kind="corpus",
            config=settings,
            versions=library_versions(),
            counts=counts,
            details={"parent": [list(info) for info in corpus_files]},
            files=scanned.files + all_files(records),
        )
        output.finish(manifest)
    progress.summary("clean", {"folder": config.output, **counts})
    return manifest
