"""The one shape of every Beam stage.

    Create(shards) -> RunShard: read the shard, work, write its files, yield its record -> (the leaf)

The work writes its files to an empty local folder; the shell moves them to their place and writes the shard's record
last. The driver reads the records back, so a stage needs nothing of a runner but to call a DoFn once per shard: tagged
outputs, file sinks, several leaves and `finish_bundle` do not behave alike everywhere. A shard whose record stands is
not worked again: that is all there is to resuming.

A process works one shard at a time, whatever its runner's threads: so its memory is that of one shard, what it loads
(pipelines/resources.py) is loaded once and never used by two at once, and the libraries' thread pools have the cores.
Processes make a job parallel. Loaded things last for one job: a cluster's workers outlive it, and a path may then hold
something else.
"""

import errno
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import apache_beam as beam
from apache_beam.metrics.metric import Metrics

from pipelines import progress
from pipelines.runners import NAMESPACE, describe, make_pipeline, run_to_end
from pipelines.storage import (
    METRICS,
    STAGES,
    OutputFolder,
    exists,
    is_disk_full,
    is_local,
    join,
    publish,
    read_bytes,
    size_of,
    write_bytes,
)
from schemas.errors import ERRORS_BY_NAME, ProponentError
from schemas.manifest import FileInfo

log = logging.getLogger(__name__)
_ONE_SHARD = threading.Lock()
_job_of: WeakKeyDictionary[OutputFolder, str] = WeakKeyDictionary()
_current = {"job": ""}


@dataclass(frozen=True)
class Shard:
    """One unit of work and of resuming. `spec` is what the work needs to find its input: JSON values only."""

    name: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """What the work on a shard gives back: counts, the rows of each file that it wrote, and small facts about it."""

    counts: dict[str, int]
    rows: dict[str, int]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardRecord:
    """A shard's work as the driver sees it."""

    shard: str
    counts: dict[str, int]
    files: list[FileInfo]
    facts: dict[str, Any]


# (the shard's spec, the output folder for reading earlier stages, an empty local folder to write to) -> Done
Work = Callable[[dict[str, Any], str, Path], Done]


def enter_job(job: str) -> None:
    """Forgets what the modules of this package keep in their caches, where that is another job's."""
    if _current["job"] == job:
        return
    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
    _current["job"] = job


class RunShard(beam.DoFn):
    """The one DoFn. A ProponentError becomes part of the record, as runners wrap exceptions beyond recognition."""

    def __init__(self, stage: str, work: Work, folder: str, job: str, quiet: bool = False):
        self.stage, self.work, self.folder, self.job, self.quiet = stage, work, folder, job, quiet

    def process(self, shard: Shard) -> Iterable[str]:
        with _ONE_SHARD:
            enter_job(self.job)
            progress.set_quiet(self.quiet)
            row = self._record(shard)
        for name, count in row.get("counts", {}).items():
            Metrics.counter(NAMESPACE, f"{self.stage}/{name}").inc(count)
        write_bytes(record_path(self.folder, self.stage, shard.name), json.dumps(row).encode())
        yield shard.name

    def _record(self, shard: Shard) -> dict[str, Any]:
        # Beside the output where that is local, so that publishing is a rename.
        place, start = None, time.perf_counter()
        if is_local(self.folder):
            place = join(self.folder, STAGES)
            os.makedirs(place, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".work-") as temporary:
            try:
                done = self.work(shard.spec, self.folder, Path(temporary))
                files = [publish(Path(temporary) / n, self.folder, n, rows) for n, rows in sorted(done.rows.items())]
            except ProponentError as error:
                return {"shard": shard.name, "error": [type(error).__name__, str(error)]}
            except OSError as error:
                # Looked into while the work's files still take the room; the driver knows it by its text.
                if error.errno is None and is_disk_full(error, temporary):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), temporary) from error
                raise
        return {
            "shard": shard.name,
            "counts": done.counts,
            "facts": done.facts,
            "files": [asdict(info) for info in files],
            "seconds": time.perf_counter() - start,
            "worker": f"{socket.gethostname()}/{os.getpid()}",
        }


def record_path(folder: str, stage: str, shard: str) -> str:
    return join(folder, STAGES, stage, f"{shard}.json")


def _read_record(folder: str, stage: str, shard: str) -> dict[str, Any] | None:
    path = record_path(folder, stage, shard)
    return json.loads(read_bytes(path)) if exists(path) else None


def _is_whole(folder: str, row: dict[str, Any] | None) -> bool:
    """Whether a shard's record stands, and its files beside it in their sizes."""
    if row is None or "error" in row:
        return False
    return all(size_of(join(folder, info["name"])) == info["bytes"] for info in row["files"])


def log_runner(beam_args: tuple[str, ...]) -> None:
    """Says which runner a job will run on. Raises ConfigError where it cannot, before anything is written."""
    log.info("runner: %s", describe(make_pipeline(beam_args), beam_args))


def run_pipeline(run_shard: RunShard, shards: list[Shard], beam_args: tuple[str, ...]) -> None:
    """Works the shards with Beam and waits."""
    pipeline = make_pipeline(beam_args, len(shards))
    _ = pipeline | "Shards" >> beam.Create(shards) | f"Run {run_shard.stage}" >> beam.ParDo(run_shard)
    counters = run_to_end(pipeline)
    told = "nothing: it keeps no counters" if counters is None else counters
    log.debug("stage %s: the runner counted %s", run_shard.stage, told)


def run_stage(
    stage: str, shards: list[Shard], work: Work, output: OutputFolder, beam_args: tuple[str, ...] = ()
) -> list[ShardRecord]:
    """Works every shard that has no record yet, or not all files of its record, and returns the records in order.

    Raises the first shard's ProponentError, or RuntimeError if the runner ended without a shard's record.
    """
    folder, job = output.path, _job_of.setdefault(output, uuid.uuid4().hex)
    _current["job"] = job  # what the driver has loaded for it stays, for a runner in this process
    found = {shard.name: _read_record(folder, stage, shard.name) for shard in shards}
    pending = [shard for shard in shards if not _is_whole(folder, found[shard.name])]
    if pending:
        run_pipeline(RunShard(stage, work, folder, job, progress.is_quiet()), pending, beam_args)
    rows = []
    for shard in shards:
        row = _read_record(folder, stage, shard.name)
        if row is None:
            raise RuntimeError(
                f"stage {stage}: the runner ended, but shard {shard.name} has no record in {folder}; its workers must "
                "see the same folder as the driver: an object store, or a file system that all machines share"
            )
        if "error" in row:
            kind, message = row["error"]
            raise ERRORS_BY_NAME.get(kind, ProponentError)(message)
        rows.append(row)
    _write_metrics(stage, rows, output)
    return [
        ShardRecord(row["shard"], row["counts"], [FileInfo(**info) for info in row["files"]], row["facts"])
        for row in rows
    ]


def _write_metrics(stage: str, rows: list[dict[str, Any]], output: OutputFolder) -> None:
    """What the stage took, into `metrics.json`: seconds are summed over the shards, those of an earlier run among them.

    It has clock times, so the manifest does not list it: the same job gives the same files but for this one. `rows` is
    what came in, or where a stage does not count that, what it wrote.
    """
    path = join(output.path, METRICS)
    metrics = json.loads(read_bytes(path)) if exists(path) else {}
    counts: dict[str, int] = {}
    for row in rows:
        for name, count in row["counts"].items():
            counts[name] = counts.get(name, 0) + count
    worked = counts["in"] if "in" in counts else sum(info["rows"] for row in rows for info in row["files"])
    seconds = sum(row["seconds"] for row in rows)
    metrics[stage] = {
        "shards": len(rows),
        "workers": len({row["worker"] for row in rows}),
        "counts": counts,
        "rows": worked,
        "seconds": round(seconds, 3),
        "rows_per_second": round(worked / seconds, 3) if seconds else 0.0,
    }
    output.write(METRICS, json.dumps(metrics, indent=1).encode() + b"\n", len(metrics))


def total(records: list[ShardRecord], count: str) -> int:
    return sum(record.counts.get(count, 0) for record in records)


def all_files(records: list[ShardRecord]) -> list[FileInfo]:
    """The files that stay in the finished folder, hidden ones left out."""
    return [info for record in records for info in record.files if not info.name.startswith(".")]


def library_versions() -> dict[str, str]:
    """Versions that decide the bytes of an output."""
    names = ("apache-beam", "datasketch", "faiss-cpu", "numpy", "pyarrow", "tokenizers", "torch", "transformers")
    return {name: metadata.version(name) for name in names} | {"proponent": metadata.version("proponent")}
