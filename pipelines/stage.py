"""The one shape of every Beam stage.

    Create(shards) -> RunShard: read the shard, work, write its files, yield its record -> (the leaf)

The work writes its files to an empty local folder; the shell moves them to their place and writes the shard's record
last. The driver reads the records back, so a stage needs nothing of a runner but to call a DoFn once per shard: tagged
outputs, file sinks, several leaves and `finish_bundle` do not behave alike everywhere. A shard whose record stands is
not worked again: that is all there is to resuming.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.storage import STAGES, OutputFolder, exists, is_local, join, publish, read_bytes, write_bytes
from schemas.errors import ERRORS_BY_NAME, ProponentError
from schemas.manifest import FileInfo

log = logging.getLogger(__name__)


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


class RunShard(beam.DoFn):
    """The one DoFn. A ProponentError becomes part of the record, as runners wrap exceptions beyond recognition."""

    def __init__(self, stage: str, work: Work, folder: str):
        self.stage, self.work, self.folder = stage, work, folder

    def process(self, shard: Shard) -> Iterable[str]:
        # Beside the output where that is local, so that publishing is a rename.
        place = None
        if is_local(self.folder):
            place = join(self.folder, STAGES)
            os.makedirs(place, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".work-") as temporary:
            try:
                done = self.work(shard.spec, self.folder, Path(temporary))
                files = [publish(Path(temporary) / n, self.folder, n, rows) for n, rows in sorted(done.rows.items())]
                row = {"shard": shard.name, "counts": done.counts, "facts": done.facts}
                row["files"] = [asdict(info) for info in files]
            except ProponentError as error:
                row = {"shard": shard.name, "error": [type(error).__name__, str(error)]}
        write_bytes(record_path(self.folder, self.stage, shard.name), json.dumps(row).encode())
        yield shard.name


def record_path(folder: str, stage: str, shard: str) -> str:
    return join(folder, STAGES, stage, f"{shard}.json")


def _read_record(folder: str, stage: str, shard: str) -> dict[str, Any] | None:
    path = record_path(folder, stage, shard)
    return json.loads(read_bytes(path)) if exists(path) else None


def make_runner(beam_args: tuple[str, ...]) -> tuple[beam.runners.PipelineRunner | None, PipelineOptions]:
    """(runner, options): the in-process FnApiRunner unless the arguments name another.

    Beam's own default tries to download a runner at start and falls back without a word; so "direct" means FnApiRunner
    here, and the one that is chosen is logged.
    """
    options = PipelineOptions(list(beam_args))
    name = options.view_as(StandardOptions).runner
    workers = options.view_as(DirectOptions).direct_num_workers or os.cpu_count() or 1
    if workers > 1:  # worker processes share the cores: a thread pool of all of them in each would fight
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    if name in (None, "direct", "DirectRunner", "FnApiRunner"):
        return FnApiRunner(), options
    return None, options


def log_runner(beam_args: tuple[str, ...]) -> None:
    runner, options = make_runner(beam_args)
    name = options.view_as(StandardOptions).runner
    log.info("runner: %s", "FnApiRunner (Beam, local, in this process)" if runner else name)


def run_pipeline(stage: str, shards: list[Shard], work: Work, folder: str, beam_args: tuple[str, ...]) -> None:
    """Works the shards with Beam and waits."""
    runner, options = make_runner(beam_args)
    pipeline = beam.Pipeline(runner=runner, options=options)
    _ = pipeline | "Shards" >> beam.Create(shards) | f"Run {stage}" >> beam.ParDo(RunShard(stage, work, folder))
    pipeline.run().wait_until_finish()


def run_stage(
    stage: str, shards: list[Shard], work: Work, output: OutputFolder, beam_args: tuple[str, ...] = ()
) -> list[ShardRecord]:
    """Works every shard that has no record yet and returns all records in the order of `shards`.

    Raises the first shard's ProponentError, or RuntimeError if the runner ended without a shard's record.
    """
    folder = output.path
    found = {shard.name: _read_record(folder, stage, shard.name) for shard in shards}
    pending = [shard for shard in shards if found[shard.name] is None or "error" in found[shard.name]]
    if pending:
        run_pipeline(stage, pending, work, folder, beam_args)
    records = []
    for shard in shards:
        row = _read_record(folder, stage, shard.name)
        if row is None:
            raise RuntimeError(f"stage {stage}: the runner ended, but shard {shard.name} has no record")
        if "error" in row:
            kind, message = row["error"]
            raise ERRORS_BY_NAME.get(kind, ProponentError)(message)
        files = [FileInfo(**info) for info in row["files"]]
        records.append(ShardRecord(row["shard"], row["counts"], files, row["facts"]))
    return records


def total(records: list[ShardRecord], count: str) -> int:
    return sum(record.counts.get(count, 0) for record in records)


def all_files(records: list[ShardRecord]) -> list[FileInfo]:
    """The files that stay in the finished folder, hidden ones left out."""
    return [info for record in records for info in record.files if not info.name.startswith(".")]


def library_versions() -> dict[str, str]:
    """Versions that decide the bytes of an output."""
    names = ("apache-beam", "faiss-cpu", "numpy", "pyarrow", "tokenizers", "torch", "transformers")
    return {name: metadata.version(name) for name in names} | {"proponent": metadata.version("proponent")}
