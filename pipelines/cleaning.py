"""What `clean` does with one file: judge each record, write what stays, set aside what goes, in one reading.

file -> corpus/<name>, attributes/<name>, removed/<number>.jsonl (of Parquet also its rows), dead_letters/<number>.jsonl
"""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attribution.redaction import redact_fields, redact_line, redact_text
from pipelines import progress
from pipelines.config import CleanConfig
from pipelines.corpus import (
    CLEANED,
    JSONL,
    PARQUET,
    TEXT,
    CorpusFormat,
    Row,
    codec_of,
    create_corpus_file,
    open_parquet,
    read_rows,
    relative_name,
    split_suffix,
    text_of,
)
from pipelines.picks import picker
from pipelines.scan import IDS, DeadLetters, IdHashes
from pipelines.stage import Done
from pipelines.storage import STAGES
from schemas.records import Removal, text_sha256
from schemas.removals import is_listable
from schemas.removed import Removed, removed_to_jsonl

AT_ONCE = 4096  # ids whose hashes and attributes are made together
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


def unmarked_row(given_id: str) -> str:
    """A line of Dolma attributes for a record that stays, or was refused; `given_id` is JSON."""
    return f'{{"id": {given_id}, "attributes": {{}}}}\n'


def marked_row(given_id: str, removal: Removal, text: str) -> str:
    """A line of Dolma attributes: the spans that a decision is about, with the score 1."""
    spans = removal.spans if removal.action == "redact" else ((0, len(text)),)
    marked = {f"proponent__{removal.action}": [[start, end, 1.0] for start, end in spans]}
    return f'{{"id": {given_id}, "attributes": {json.dumps(marked)}}}\n'


class Pending:
    """Ids, rows and attributes of the last records, which are hashed and written together."""

    def __init__(self, hashes: IdHashes, attributes: BinaryIO | None, advance: Callable[..., None]):
        self.ids: list[str] = []
        self.rows: list[int] = []
        self.marks: list[str] = []
        self.num_marks = 0
        self._hashes, self._attributes, self._advance = hashes, attributes, advance

    def flush(self) -> None:
        self._hashes.add(self.ids, self.rows)
        if self._attributes is not None:
            self._attributes.write("".join(self.marks).encode())
        self._advance(len(self.ids))
        self.num_marks += len(self.marks)
        for written in (self.ids, self.rows, self.marks):
            written.clear()


def clean_shard(spec: dict[str, Any], folder: str, out: Path, config: CleanConfig, base: str, version: int) -> Done:
    """One file without its removed records, in the same format and compression; what was taken out beside it."""
    path, repeated, number = spec["path"], frozenset(spec.get("repeated", ())), f"{spec['file']:05d}"
    suffix, id_field, format = split_suffix(path)[0], config.id_field, CorpusFormat(config.id_field, config.text_field)
    pick, name = picker(folder, config), relative_name(path, base)
    target, marked = f"{CLEANED}{name}", f"attributes/{name}{'.jsonl' if suffix in PARQUET else ''}"
    hashes, letters, taken = IdHashes(out, IDS, number), DeadLetters(out, number), Taken(spec, out, config, version)
    wants_urls, parquet = config.removals_are == "domains", ParquetRows()
    kept = count = with_url = 0
    with ExitStack() as stack:
        advance = stack.enter_context(progress.bar(f"clean, file {spec['file']}", None, "records"))
        sink = stack.enter_context(nullcontext(None) if suffix in PARQUET else create_corpus_file(out / target))
        attributes = stack.enter_context(nullcontext(None) if suffix in TEXT else create_corpus_file(out / marked))
        pending = Pending(hashes, attributes, advance)
        ids, rows, marks = pending.ids, pending.rows, pending.marks
        for item in read_rows(path, format, base, (config.url_field,) * wants_urls):
            if len(marks) == AT_ONCE:
                pending.flush()
            if type(item) is not tuple:
                marks.append("\n" if item is None else unmarked_row(json.dumps(item.given_id, default=str)))
                if item is not None:
                    letters.add(item.letter)
                    parquet.codes.append(LEFT_OUT)
                continue
            row, record_id, text, fields, raw = item
            count += 1
            ids.append(record_id)
            rows.append(row)
            picked = pick(record_id, text, fields)
            # As the record gives it: Dolma's mixer compares the two, and a number is no string.
            given_id = record_id if type(fields.get(id_field)) is int else _quoted(record_id)
            if picked is None and raw is not None and not repeated and not wants_urls:  # nearly all: 0.3 us less
                marks.append(f'{{"id": {given_id}, "attributes": {{}}}}\n')
                kept += 1
                sink.write(raw)
                continue
            outcome = KEPT
            if wants_urls:
                with_url += isinstance(fields.get(config.url_field), str)
            if row in repeated:
                outcome = LEFT_OUT
            elif picked is not None:
                outcome, raw = taken.act(item, *picked, kept, parquet)
            gone = outcome in (REMOVED, REDACTED)
            marks.append(marked_row(given_id, picked[0], text) if gone else unmarked_row(given_id))
            if outcome & KEPT:
                kept += 1
                if sink is not None:
                    sink.write(raw)
            if sink is None:
                parquet.codes.append(outcome)
        pending.flush()
    hashes.write()
    written = hashes.written | letters.close() | taken.close()
    if attributes is not None:
        written[marked] = pending.num_marks
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
