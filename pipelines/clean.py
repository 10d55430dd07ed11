"""`clean`: a corpus and approved removals become a new version of it, and what was taken out with the reason.

  corpus files -> clean (a shard: a file, read once): judge each record, write what stays, set aside what goes
       -> repeated ids over all files, the failure budget, every removal found as it was judged: else nothing is left
       -> again (the few files with a repeated id): without it
       -> corpus/<same names>, removed/, attributes/<same names>, removed_ids.txt, dead_letters/, manifest.json

A kept JSONL record keeps its bytes, a kept Parquet row every column; a redaction changes the bytes of its spans alone.
What was done in an earlier version is not done twice: a removal of what its `removed/` lists, and a redaction whose
result stands there, change nothing. Any other removal that is not found as it was judged is refused.

`attributes/` has a row for each row of the input, in its order, as Dolma's mixer reads them: under the input's name, in
its compression, so that the mixer finds them (of Parquet: with `.jsonl`). `removed/` has the rows that datatrove calls
exclusions.
"""

import hashlib
import json
import logging
import os
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from attribution.redaction import redact_fields, redact_line, redact_text
from pipelines import progress
from pipelines.config import CleanConfig
from pipelines.corpus import (
    CLEANED,
    IDS,
    JSONL,
    PARQUET,
    TEXT,
    CorpusFormat,
    DeadLetters,
    IdHashes,
    Row,
    base_folder,
    codec_of,
    corpus_shards,
    create_corpus_file,
    judge,
    list_corpus,
    open_parquet,
    read_rows,
    relative_name,
    split_suffix,
    text_of,
)
from pipelines.picks import PICKS, picker, read_picks
from pipelines.stage import Done, Shard, ShardRecord, Work, all_files, library_versions, log_runner, run_stage, total
from pipelines.storage import STAGES, OutputFolder, exists, join, read_bytes
from pipelines.versions import REMOVED_IDS, history, next_version, write_earlier
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.manifest import FileInfo, Manifest
from schemas.records import Removal, text_sha256
from schemas.removals import is_listable, parse_removals
from schemas.removed import Removed, removed_to_jsonl

log = logging.getLogger(__name__)
AT_ONCE = 4096  # ids whose hashes and attributes are made together
SHOWN = 5
LEFT_OUT, KEPT, REMOVED, REDACTED = 0, 1, 2, 3  # of a record; bit 1: it stays, bit 2: it is set aside as it was
_quoted = json.encoder.encode_basestring  # the JSON string of an id


class Taken:
    """What one file loses: its rows of `removed/`, and what the driver must know of them."""

    def __init__(self, spec: dict[str, Any], out: Path, config: CleanConfig, version: int):
        self.path, self.name, self.config, self.version = spec["path"], f"{spec['file']:05d}", config, version
        self.suffix = split_suffix(self.path)[0]
        self.found: dict[str, str] = {}  # by entry of the removals: the hash of the text that it picked
        self.refused: list[str] = []
        self.unlisted = 0  # ids that cannot stand in a list of one a line
        self.counts = {"removed": 0, "redacted": 0}
        self._out, self._files = out, ExitStack()
        self._rows = self._ids = None

    def act(
        self, item: Row, removal: Removal, entry: str, kept_before: int, parquet: "ParquetRows"
    ) -> tuple[int, bytes | None]:
        """(what becomes of a record by a decision, its line); it stays where the driver will refuse the job."""
        sha256 = self.found[entry] = text_sha256(item[2])
        if removal.sha256 != sha256:
            return KEPT, item[4]
        if removal.action == "remove":
            self._set_aside(item, removal, kept_before, sha256)
            return REMOVED, None
        try:
            line, values, text = self._redacted(item, removal)
        except ValueError as error:
            self.refused.append(f"{item[1]} ({self.path}, row {item[0]}): {error}")
            return KEPT, item[4]
        if values:
            parquet.values[len(parquet.codes)] = values
        self._set_aside(item, removal, kept_before, sha256, text_sha256(text))
        return REDACTED, line

    def _redacted(self, item: Row, removal: Removal) -> tuple[bytes | None, dict[str, str], str]:
        """(new line or content, new values of Parquet columns, new text); raises ValueError where it cannot be."""
        _, _, text, fields, raw = item
        text_field = self.config.text_field
        if self.suffix in JSONL:
            line = redact_line(raw, text_field, removal.spans)
            return line, {}, text_of(json.loads(line.decode().lstrip("\ufeff")), text_field)
        if self.suffix in PARQUET:
            values = redact_fields(fields, text_field, removal.spans)
            return None, values, text_of(fields | values, text_field)
        text = redact_text(text, removal.spans)
        return text.encode(), {}, text

    def _set_aside(self, item: Row, removal: Removal, kept_before: int, sha256: str, result: str = "") -> None:
        row, record_id, text, _, raw = item
        removed = Removed(
            id=record_id,
            sha256=sha256,
            file=self.path,
            row=row,
            action=removal.action,
            spans=removal.spans,
            result_sha256=result,
            kept_before=kept_before,
            version=self.version,
            request_ids=removal.request_ids,
            decided_by=removal.decided_by,
            decided_at=removal.decided_at,
            reason=removal.reason,
            fact_ids=removal.fact_ids,
            group=removal.group,
            text=text,
            raw=None if raw is None else raw.decode(),
        )
        if self._rows is None:
            self._rows = self._open(f"removed/{self.name}.jsonl")
            self._ids = self._open(f"{STAGES}/removed_ids/{self.name}.txt")
        self._rows.write(removed_to_jsonl([removed.hash_only() if self.config.erase else removed]))
        if removal.action == "remove":
            self.counts["removed"] += 1
            if is_listable(record_id):
                self._ids.write(f"{record_id}\n".encode())
            else:
                self.unlisted += 1
        else:
            self.counts["redacted"] += 1

    def _open(self, name: str) -> Any:
        (self._out / name).parent.mkdir(parents=True, exist_ok=True)
        return self._files.enter_context(open(self._out / name, "wb"))

    def close(self) -> dict[str, int]:
        """The rows of each file that was written."""
        self._files.close()
        if self._rows is None:
            return {}
        written = {f"removed/{self.name}.jsonl": sum(self.counts.values())}
        return written | {f"{STAGES}/removed_ids/{self.name}.txt": self.counts["removed"] - self.unlisted}


def attribute_row(given_id: str, removal: Removal, text: str) -> str:
    """A line of Dolma attributes: the spans that a decision is about, with the score 1."""
    spans = removal.spans if removal.action == "redact" else ((0, len(text)),)
    marked = {f"proponent__{removal.action}": [[start, end, 1.0] for start, end in spans]}
    return f'{{"id": {given_id}, "attributes": {json.dumps(marked)}}}\n'


def clean_shard(spec: dict[str, Any], folder: str, out: Path, config: CleanConfig, base: str, version: int) -> Done:
    """One file without its removed records, in the same format and compression; what was taken out beside it."""
    path, repeated, number = spec["path"], frozenset(spec.get("repeated", ())), f"{spec['file']:05d}"
    suffix, format = split_suffix(path)[0], CorpusFormat(config.id_field, config.text_field)
    pick, name = picker(folder, config), relative_name(path, base)
    target, marked = f"{CLEANED}{name}", f"attributes/{name}{'.jsonl' if suffix in PARQUET else ''}"
    hashes, letters, taken = IdHashes(out, IDS, number), DeadLetters(out, number), Taken(spec, out, config, version)
    wants_urls, parquet = config.removals_are == "domains", ParquetRows()
    kept = count = with_url = num_marks = 0
    ids: list[str] = []
    rows: list[int] = []
    marks: list[str] = []
    with ExitStack() as stack:
        advance = stack.enter_context(progress.bar(f"clean, file {spec['file']}", None, "records"))
        in_lines = nullcontext(None) if suffix in PARQUET else create_corpus_file(out / target)
        sink = stack.enter_context(in_lines)
        attributes = stack.enter_context(nullcontext(None) if suffix in TEXT else create_corpus_file(out / marked))

        def flush() -> int:
            hashes.add(ids, rows)
            if attributes is not None:
                attributes.write("".join(marks).encode())
            advance(len(ids))
            written = len(marks)
            for done in (ids, rows, marks):
                done.clear()
            return written

        for item in read_rows(path, format, base, (config.url_field,) * wants_urls):
            if len(marks) == AT_ONCE:
                num_marks += flush()
            if type(item) is not tuple:
                marks.append(
                    "\n"
                    if item is None
                    else f'{{"id": {json.dumps(item.given_id, default=str)}, "attributes": {{}}}}\n'
                )
                if item is not None:
                    letters.add(item.letter)
                    parquet.codes.append(LEFT_OUT)
                continue
            row, record_id, text, fields, raw = item
            count += 1
            ids.append(record_id)
            rows.append(row)
            picked, outcome = pick(record_id, text, fields), KEPT
            if wants_urls:
                with_url += isinstance(fields.get(config.url_field), str)
            if row in repeated:
                outcome = LEFT_OUT
            elif picked is not None:
                outcome, raw = taken.act(item, *picked, kept, parquet)
            # As the record gives it: Dolma's mixer compares the two, and a number is no string.
            given_id = record_id if type(fields.get(config.id_field)) is int else _quoted(record_id)
            if outcome in (REMOVED, REDACTED):
                marks.append(attribute_row(given_id, picked[0], text))
            else:
                marks.append(f'{{"id": {given_id}, "attributes": {{}}}}\n')
            if outcome & KEPT:
                kept += 1
                if sink is not None:
                    sink.write(raw)
            if sink is None:
                parquet.codes.append(outcome)
        num_marks += flush()
    hashes.write()
    written = hashes.written | letters.close() | taken.close()
    if attributes is not None:
        written[marked] = num_marks
    if sink is None:
        written |= parquet.write(path, format, out, target, "" if config.erase else f"removed/{number}.parquet")
    elif suffix in TEXT and not kept:
        os.remove(out / target)  # one document: taken out whole
    else:
        written[target] = kept
    counts = {"in": count + letters.count, "kept": kept, "dead": letters.count} | taken.counts
    facts = {"first": letters.first, "found": taken.found, "refused": taken.refused, "unlisted": taken.unlisted}
    return Done(counts, written, facts | {"with_url": with_url})


class ParquetRows:
    """What becomes of each row of a Parquet file, in one byte: bit 1, it stays; bit 2, it is set aside as it was."""

    def __init__(self) -> None:
        self.codes = bytearray()
        self.values: dict[int, dict[str, str]] = {}  # by row, from 0: the new values of a redacted record's columns

    def write(self, path: str, format: CorpusFormat, out: Path, target: str, aside: str) -> dict[str, int]:
        """Writes what stays to `target` and what is set aside to `aside`, if it is named; the rows of each.

        Row group by row group; schema, metadata and compression as they were.
        """
        source, first, codes = open_parquet(path, format), 0, np.frombuffer(self.codes, np.uint8)
        places = {target: KEPT} | ({aside: REMOVED} if aside and (codes & REMOVED).any() else {})
        with ExitStack() as stack:
            writers = {}
            for name in places:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(out / name, source.schema_arrow, compression=codec_of(source))
                writers[name] = stack.enter_context(writer)
            for group in range(source.num_row_groups):
                table = source.read_row_group(group)
                here = codes[first : first + len(table)]
                for name, bit in places.items():
                    changed = self._redacted(table, first) if bit == KEPT else table
                    writers[name].write_table(changed.filter(pa.array((here & bit) > 0)))
                first += len(table)
        return {name: int(np.count_nonzero(codes & bit)) for name, bit in places.items()}

    def _redacted(self, table: pa.Table, first: int) -> pa.Table:
        here = {row - first: values for row, values in self.values.items() if first <= row < first + len(table)}
        for name in sorted({name for values in here.values() for name in values}):
            column = table[name].to_pylist()
            for row, values in here.items():
                column[row] = values.get(name, column[row])
            field = table.schema.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, pa.array(column, field.type))
        return table


def _without_repeated(
    records: list[ShardRecord],
    shards: list[Shard],
    repeated: dict[int, list[int]],
    work: Work,
    output: OutputFolder,
    beam_args: tuple[str, ...],
) -> list[ShardRecord]:
    """The records once the files that hold a repeated id have been written again without it.

    Which ids are repeated is known when all files have been read; few corpora have any, so few files are read twice.
    """
    again = [
        Shard(s.name, s.spec | {"repeated": repeated[s.spec["file"]]}) for s in shards if s.spec["file"] in repeated
    ]
    if not again:
        return records
    anew = {record.shard: record for record in run_stage("again", again, work, output, beam_args)}
    for record in records:
        if record.shard in anew:
            names = {info.name for info in anew[record.shard].files}
            left = [join(output.path, info.name) for info in record.files if info.name not in names]
            FileSystems.delete([path for path in left if exists(path)])
    return [anew.get(record.shard, record) for record in records]


def _refuse_unmatched(config: CleanConfig, entries: list[str], picks: bytes, found: dict[str, str]) -> int:
    """How many removals were done in an earlier version. Raises ArtifactMismatch for any other that is not there."""
    judged = {}
    if config.removals_are == "decisions":
        judged = {removal.example_id: removal for removal in parse_removals(picks, config.removals)}
    unknown = {entry for entry in entries if entry not in found}
    changed = {r.example_id for r in judged.values() if found.get(r.example_id, r.sha256) != r.sha256}
    earlier: dict[str, list[Removed]] = {}
    if unknown or changed:
        for removed in history(config.corpus):
            if removed.id in unknown or removed.id in changed:
                earlier.setdefault(removed.id, []).append(removed)
    done = {i for i in unknown if _is_gone(judged.get(i), earlier.get(i, []))}
    done |= {i for i in changed if _is_redacted(judged[i], found[i], earlier.get(i, []))}
    for suspects, what in (
        (unknown, "stand nowhere in the corpus"),
        (changed, "have another text in the corpus than the one that was judged"),
    ):
        ids = [entry for entry in entries if entry in suspects and entry not in done]
        if ids:
            raise ArtifactMismatch(
                f"{config.removals}: expected every approved removal to be in the corpus as it was judged, found "
                f"{len(ids)} that {what} ({_shown(ids)}); was the corpus changed, or is it another one? Index and "
                "trace this corpus, and flag again"
            )
    return len(done)


def _is_gone(removal: Removal | None, earlier: list[Removed]) -> bool:
    """Whether an earlier version took out a record that is missing, and it was the text that was judged."""
    texts = {removed.sha256 for removed in earlier}
    return any(r.action == "remove" for r in earlier) and (removal is None or removal.sha256 in texts)


def _is_redacted(removal: Removal, sha256: str, earlier: list[Removed]) -> bool:
    """Whether an earlier version made this very redaction, and its result still stands."""
    wanted = ("redact", removal.sha256, removal.spans, sha256)
    return removal.action == "redact" and any(
        (removed.action, removed.sha256, removed.spans, removed.result_sha256) == wanted for removed in earlier
    )


def _shown(entries: list[str]) -> str:
    return f"{', '.join(entries[:SHOWN])}{', ...' if len(entries) > SHOWN else ''}"


def _refuse_unredacted(config: CleanConfig, refused: list[str]) -> None:
    if refused:
        shown = "\n  ".join(refused[:SHOWN]) + ("\n  ..." if len(refused) > SHOWN else "")
        raise ConfigError(
            f"{config.removals}: expected spans that can be taken out of the records' own text, found {len(refused)} "
            f"redactions that cannot; mend their spans, or decide on 'remove':\n  {shown}"
        )


def _refuse_without_urls(config: CleanConfig, num_with_url: int, num_in: int) -> None:
    if config.removals_are == "domains" and not num_with_url:
        raise ConfigError(
            f"--url_field {config.url_field}: expected a field that holds a record's URL, found it in none of {num_in} "
            "records; name the field, or list ids or sums"
        )


def _removed_ids(records: list[ShardRecord], output: OutputFolder) -> FileInfo:
    """The plain list of ids, file by file, as other tools take it; empty where nothing was removed."""
    names = [info.name for record in records for info in record.files if "/removed_ids/" in info.name]
    unlisted = sum(record.facts["unlisted"] for record in records)
    if unlisted:
        log.warning("%d ids hold a line end or begin with #: %s leaves them out", unlisted, REMOVED_IDS)
    data = b"".join(read_bytes(join(output.path, name)) for name in names)
    return output.write(REMOVED_IDS, data, total(records, "removed") - unlisted)


def run(config: CleanConfig, beam_args: tuple[str, ...] = ()) -> Manifest:
    """Writes the new version to `config.output`; the same removals give the same bytes.

    Raises ConfigError (nothing approved, a span that cannot be redacted), ArtifactMismatch (a removal for an unknown id
    or a changed text) or FailureBudgetExceeded, leaving nothing behind.
    """
    corpus_files = list_corpus(config.corpus)
    entries, picks = read_picks(config)
    log_runner(beam_args)
    base, details = base_folder(config.corpus), next_version(config.corpus, corpus_files)
    approved = hashlib.sha256(picks).hexdigest()
    plan = asdict(config) | {"files": corpus_files, "approved": approved, "parent": details["parent_manifest_sha256"]}
    plan.pop("quiet")
    with OutputFolder(config.output, plan) as output:
        output.write(PICKS, picks, len(entries))
        picker.cache_clear()
        shards = corpus_shards(corpus_files)
        work = partial(clean_shard, config=config, base=base, version=details["version"])
        records = run_stage("clean", shards, work, output, beam_args)
        scanned = judge(records, shards, output, config.max_dead_fraction)
        records = _without_repeated(records, shards, scanned.repeated, work, output, beam_args)
        found = {entry: sha256 for record in records for entry, sha256 in record.facts["found"].items()}
        _refuse_without_urls(config, sum(record.facts["with_url"] for record in records), scanned.num_in)
        details |= {"redacted": total(records, "redacted"), "already_done": 0, "unmatched": 0}
        if config.removals_are in ("decisions", "ids"):
            details["already_done"] = _refuse_unmatched(config, entries, picks, found)
        else:
            details["unmatched"] = len(entries) - len(found)
        _refuse_unredacted(config, [line for record in records for line in record.facts["refused"]])
        counts = {
            "in": scanned.num_in,
            "kept": total(records, "kept"),
            "removed": total(records, "removed"),
            "dead": scanned.num_dead,
        }
        files = all_files(records)
        names = {info.name for info in files}
        files += [info for info in scanned.files if info.name not in names and info.name.startswith("dead_letters/")]
        files.append(_removed_ids(records, output))
        files += write_earlier(history(config.corpus), output)
        settings = {name: value for name, value in asdict(config).items() if name != "output"}
        manifest = Manifest(
            kind="corpus",
            config=settings,
            versions=library_versions(),
            counts=counts,
            details=details,
            files=files,
        )
        output.finish(manifest)
    told = {"folder": config.output, "version": details["version"], **counts}
    told |= {
        name.replace("_", " "): details[name] for name in ("redacted", "already_done", "unmatched") if details[name]
    }
    progress.summary("clean", told)
    return manifest
