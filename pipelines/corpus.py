"""Corpora: JSONL (plain, .gz, .zst), Parquet and plain text files in, record by record.

A record of JSONL or Parquet holds its text in one of three ways, the first of these that is there and not null:
- the text field (`text`, or as named), whatever else the record holds,
- `messages`, a chat: a list of {role, content}, the assistant in at least one; text: "role: content" a line,
- `prompt` + `completion`, two strings; text: the one and the other, nothing between them.
The text is what is searched, compared and hashed, alike for every model; `parts` keeps the form it was taken from, so
that a model's gradient has a loss where its training has one.

`read_records` yields a Record for what is well-formed and a DeadLetter for what is not, in the file's order;
`read_rows` gives the same as bare tuples, for `clean`, which passes most of them on.
"""

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage import (
    absolute,
    exists,
    join,
    match,
    open_read,
    read_manifest,
    verified,
)
from schemas.errors import ConfigError
from schemas.manifest import MANIFEST
from schemas.records import DeadLetter, text_sha256

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
JSONL, PARQUET, TEXT = (".jsonl", ".ndjson", ".json"), (".parquet",), (".txt", ".md")
FORMS = (("messages",), ("prompt", "completion"))
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
SHOWN_CHARACTERS = 80
CLEANED = "corpus/"  # in a folder that `clean` wrote
WRITE_BUFFER = 2**20  # a call of the system, or of a compressor, takes longer than a line
LINE_ENDS = ("\n", "\r\n", "")
# (row, id, text, its fields, its line or a text file's bytes), as a Record has them
Row = tuple[int, str, str, dict[str, Any], bytes | None]
NO_FIELDS: dict[str, Any] = {}  # of a text file


@dataclass(frozen=True)
class CorpusFormat:
    """How to read a corpus: the names of its id and text fields, and of that of its vectors (`dim` numbers), if any."""

    id_field: str = "id"
    text_field: str = "text"
    embedding_field: str = ""
    dim: int = 0


@dataclass(frozen=True)
class Record:
    """One well-formed record. `raw` is its line, line ending included (JSONL), or None.

    `parts` is the JSON of its `prompt` and `completion`, or of its `messages`; "" for plain text.
    """

    id: str
    text: str
    source: str
    row: int
    raw: bytes | None = None
    parts: str = ""
    embedding: np.ndarray | None = None

    @property
    def sha256(self) -> str:
        return text_sha256(self.text)


@dataclass(frozen=True)
class Refused:
    """A record that `read_rows` refused, and what it gives as its id, None where it has none."""

    letter: DeadLetter
    given_id: Any


def split_suffix(path: str) -> tuple[str, str]:
    """(format suffix, compression suffix or ''); raises ConfigError for a file that is no corpus."""
    stem, last = os.path.splitext(path)
    compression = last if last in COMPRESSIONS else ""
    suffix = os.path.splitext(stem)[1] if compression else last
    if suffix not in JSONL + PARQUET + TEXT or (compression and suffix in PARQUET):
        raise ConfigError(
            f"{path}: expected a corpus file (.jsonl, .ndjson, .json, .txt, .md, each plain or with .gz or .zst, or "
            ".parquet), found another suffix; rename it, or narrow the glob"
        )
    return suffix, compression


def list_corpus(pattern: str) -> list[tuple[str, int]]:
    """(path, bytes) of a corpus' files: a glob, or a folder that `clean` wrote. Raises ConfigError if there is none."""
    if exists(join(pattern, MANIFEST)):
        read_manifest(pattern, "corpus")
        pattern = join(pattern, "corpus", "**")
    elif os.path.isdir(pattern):
        raise ConfigError(f"{pattern}: expected corpus files, found a folder; give a glob, such as '{pattern}/*.jsonl'")
    files = match(pattern)
    for path, size in files:
        if split_suffix(path)[1] and size == 0:
            raise _damaged(path, "at its start (0 bytes, where a compressed file of nothing has some)")
    return files


def base_folder(pattern: str) -> str:
    """The part of a glob before its first wildcard: what file names are given relative to.

    Of a folder that `clean` wrote it ends in a slash: its files are read only as its manifest knows them.
    """
    if exists(join(pattern, MANIFEST)):
        return join(absolute(pattern), CLEANED)
    return os.path.dirname(re.split(r"[*?\[{]", absolute(pattern))[0])


def open_corpus_file(path: str) -> BinaryIO:
    """The decompressed bytes of a corpus file."""
    raw = open_read(path)
    compression = split_suffix(path)[1]
    if not compression:
        return raw
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), COMPRESSIONS[compression]))


@contextmanager
def create_corpus_file(path: Path) -> Iterator[BinaryIO]:
    """A new local file to write decompressed bytes to, in the compression of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compression = split_suffix(str(path))[1]
    with open(path, "wb", WRITE_BUFFER) as file:
        if not compression:
            yield file
            return
        with io.BufferedWriter(pa.CompressedOutputStream(file, COMPRESSIONS[compression]), WRITE_BUFFER) as sink:
            yield sink


def _lines(path: str) -> Iterator[bytes]:
    """Lines with their endings. Raises ConfigError where a compressed file ends too early or is damaged."""
    number = 0
    try:
        with open_corpus_file(path) as file:
            for number, line in enumerate(file, start=1):  # noqa: B007 (the number is for the message)
                yield line
    except (OSError, EOFError, pa.ArrowException) as error:
        if not split_suffix(path)[1]:
            raise ConfigError(f"{path}: expected a file that can be read, found: {error}") from error
        raise _damaged(path, f"after line {number} ({error})") from error


def _damaged(path: str, where: str) -> ConfigError:
    return ConfigError(
        f"{path}: expected a whole file, found it truncated or damaged {where}; copy it again from its source"
    )


def _string(fields: dict[str, Any], name: str, place: str = "", may_be_empty: bool = False) -> str:
    """A field that must be a string; raises ValueError with the reason, after `place`, where it is none."""
    value = fields.get(name)
    if isinstance(value, str) and (may_be_empty or value.strip()):
        return value
    found = repr(value)[:SHOWN_CHARACTERS] if name in fields else "no such field"
    kind = "a string" if may_be_empty else "text that is not empty"
    raise ValueError(f"{place}field '{name}' must be {kind}, found {found}")


def _chat(messages: Any) -> list[dict[str, str]]:
    """The role and content of each message; raises ValueError with the reason for its refusal."""
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else repr(messages)[:SHOWN_CHARACTERS]
        raise ValueError(f"field 'messages' must be a list of at least one {{role, content}}, found {found}")
    chat = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            found = repr(message)[:SHOWN_CHARACTERS]
            raise ValueError(f"message {number} must be an object with role and content, found {found}")
        place = f"message {number}: "
        role, content = _string(message, "role", place), _string(message, "content", place, may_be_empty=True)
        chat.append({"role": role, "content": content})
    if not any(message["role"] == "assistant" and message["content"].strip() for message in chat):
        roles = ", ".join(message["role"] for message in chat)[:SHOWN_CHARACTERS]
        raise ValueError(f"field 'messages' must hold something that the assistant says, found the roles {roles}")
    return chat


def text_of(fields: dict[str, Any], text_field: str) -> str:
    """The text of a record's fields, as it is searched and hashed; raises ValueError where they hold none."""
    return _text_and_parts(fields, text_field)[0]


def _text_and_parts(fields: dict[str, Any], text_field: str) -> tuple[str, str]:
    """A record's text, and its parts as JSON; raises ValueError with the reason for its refusal."""
    parts: dict[str, Any] = {}
    if fields.get(text_field) is not None:
        text = _string(fields, text_field)
    elif fields.get("messages") is not None:
        parts = {"messages": _chat(fields["messages"])}
        text = "\n".join(f"{message['role']}: {message['content']}" for message in parts["messages"])
    elif fields.get("prompt") is not None or fields.get("completion") is not None:
        parts = {"prompt": _string(fields, "prompt", may_be_empty=True), "completion": _string(fields, "completion")}
        text = parts["prompt"] + parts["completion"]
    else:
        text = _string(fields, text_field)  # refuses
    text.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    return text, json.dumps(parts, sort_keys=True, ensure_ascii=False) if parts else ""


def _checked(fields: Any, format: CorpusFormat, row: int, raw: bytes | None) -> Record:
    """The record in a parsed row; raises ValueError with the reason for its refusal."""
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {type(fields).__name__}")
    record_id = fields.get(format.id_field)
    if isinstance(record_id, int) and not isinstance(record_id, bool):
        record_id = str(record_id)
    if not isinstance(record_id, str) or not record_id:
        found = "no such field" if format.id_field not in fields else repr(record_id)
        raise ValueError(f"field '{format.id_field}' must be a non-empty string or an integer, found {found}")
    text, parts = _text_and_parts(fields, format.text_field)
    record_id.encode()
    source = fields.get("source")
    vector = _vector(fields.get(format.embedding_field), format) if format.embedding_field else None
    return Record(record_id, text, source if isinstance(source, str) else "", row, raw, parts, vector)


def _vector(value: Any, format: CorpusFormat) -> np.ndarray:
    """`[dim]` float32; raises ValueError with the reason for its refusal."""
    expected = f"field '{format.embedding_field}' must be a list of {format.dim or 'some'} finite numbers, not all zero"
    try:
        with np.errstate(over="ignore"):  # refused below as infinity
            vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}, found {value!r:.80}") from error
    if vector.ndim != 1 or not vector.size:
        raise ValueError(f"{expected}, found {np.asarray(value).tolist()!r:.80}")
    if format.dim and len(vector) != format.dim:
        raise ValueError(f"{expected} (as the corpus' first record has), found {len(vector)}")
    if not np.isfinite(vector).all() or not vector.any():
        raise ValueError(f"{expected}, found {'zeros' if np.isfinite(vector).all() else 'NaN or infinity'}")
    return vector


def with_vectors_of(format: CorpusFormat, files: list[tuple[str, int]], base: str) -> CorpusFormat:
    """The format with the dimension of the corpus' first vector. Raises ConfigError where no record has one."""
    reason = "no records"
    for path, _ in files:
        for item in read_records(path, format, base):
            if isinstance(item, Record):
                return replace(format, dim=len(item.embedding))
            reason = f"row {item.row}: {item.reason}"
    raise ConfigError(
        f"--embedding_field {format.embedding_field}: expected records with a vector, found none ({reason}); name the "
        "field that holds them, or give --encoder alone"
    )


def _parsed(line: bytes, row: int) -> Any:
    """The JSON value of a line; raises ValueError with the reason for its refusal."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start} of the line") from error
    try:
        return json.loads(text.lstrip("\ufeff") if row == 1 else text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error


def _jsonl(path: str, format: CorpusFormat) -> Iterator[Record | DeadLetter]:
    for row, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield _checked(_parsed(line, row), format, row, line)
        except ValueError as error:
            yield _bad_line(path, row, line, error)


def _bad_line(path: str, row: int, line: bytes, error: ValueError) -> DeadLetter:
    return DeadLetter(path, row, "read", str(error), line[:200].decode("utf-8", "replace").rstrip())


def _given_id(fields: Any, format: CorpusFormat) -> Any:
    return fields.get(format.id_field) if isinstance(fields, dict) else None


def _jsonl_rows(path: str, format: CorpusFormat) -> Iterator[Row | Refused | None]:
    for row, line in enumerate(_lines(path), start=1):
        plain = _plain_row(line, format.id_field, format.text_field)
        if plain:
            yield row, *plain, line
        elif not line.strip():
            yield None
        else:
            fields = None
            try:
                fields = _parsed(line, row)
                record = _checked(fields, format, row, line)
                yield row, record.id, record.text, fields, line
            except ValueError as error:
                yield Refused(_bad_line(path, row, line, error), _given_id(fields, format))


def _plain_row(line: bytes, id_field: str, text_field: str) -> tuple[str, str, dict[str, Any]] | None:
    """(id, text, fields) of a line with plain text, None for any other, which `_checked` then judges.

    Most lines of a corpus are such, and it takes half the time of the judge (2 of 4 us at 400 bytes a line).
    """
    try:
        text_line = line.decode("utf-8")
        fields, end = _raw_decode(text_line)
        record_id, text = fields[id_field], fields[text_field]
        if type(record_id) is int:
            record_id = str(record_id)
        if type(record_id) is not str or type(text) is not str or not record_id or not text or text.isspace():
            return None
        if text_line[end:] not in LINE_ENDS:
            return None
        if not (record_id.isascii() and text.isascii()):
            record_id.encode()  # a lone surrogate is no text
            text.encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        return None  # with its reason from there
    return record_id, text, fields


_raw_decode = json.JSONDecoder().raw_decode


def open_parquet(path: str, format: CorpusFormat) -> pq.ParquetFile:
    """A Parquet corpus file; raises ConfigError if it is damaged or lacks the id or a form of the text."""
    try:
        file = pq.ParquetFile(open_read(path))
    except pa.ArrowException as error:
        raise ConfigError(f"{path}: expected a Parquet file, found a damaged one ({error}); copy it again") from error
    columns = set(file.schema_arrow.names)
    if format.embedding_field:
        kind = file.schema_arrow.field(format.embedding_field).type if format.embedding_field in columns else None
        if kind is None or not any(is_one(kind) for is_one in LISTS):
            raise ConfigError(
                f"{path}: expected a column '{format.embedding_field}' of lists of numbers, found "
                f"{kind or 'no such column'}; name the column with --embedding_field"
            )
    has_text = any(columns.issuperset(form) for form in ((format.text_field,), *FORMS))
    for name, found in ((format.id_field, format.id_field in columns), (format.text_field, has_text)):
        if not found:
            raise ConfigError(
                f"{path}: expected a column '{name}', found {', '.join(file.schema_arrow.names)}; name the columns "
                "with --id_field and --text_field (in place of a text there may be messages, or prompt and completion)"
            )
    return file


def codec_of(source: pq.ParquetFile) -> str:
    """The compression of a Parquet file, as its writer takes it."""
    metadata = source.metadata
    if not metadata.num_row_groups or not metadata.num_columns:
        return "zstd"
    codec = metadata.row_group(0).column(0).compression.lower()
    return "none" if codec == "uncompressed" else codec


def _parquet(path: str, format: CorpusFormat) -> Iterator[Record | DeadLetter]:
    file = open_parquet(path, format)
    names = dict.fromkeys((format.id_field, format.text_field, *sum(FORMS, ()), "source"))
    columns = [name for name in names if name in file.schema_arrow.names]
    for row, fields in enumerate(_parquet_rows(path, file, columns, format.embedding_field), start=1):
        try:
            yield _checked(fields, format, row, None)
        except ValueError as error:
            yield DeadLetter(path, row, "read", str(error), repr(fields)[:200])


def _parquet_with_fields(path: str, format: CorpusFormat, more: tuple[str, ...]) -> Iterator[Row | Refused]:
    file = open_parquet(path, format)
    names = dict.fromkeys((format.id_field, format.text_field, *sum(FORMS, ()), *more))
    columns = [name for name in names if name in file.schema_arrow.names]
    for row, fields in enumerate(_parquet_rows(path, file, columns, ""), start=1):
        try:
            record = _checked(fields, format, row, None)
            yield row, record.id, record.text, fields, None
        except ValueError as error:
            told = {name: value for name, value in fields.items() if name not in more}
            yield Refused(DeadLetter(path, row, "read", str(error), repr(told)[:200]), _given_id(fields, format))


def _parquet_rows(path: str, file: pq.ParquetFile, columns: list[str], vectors: str) -> Iterator[dict[str, Any]]:
    row = 0
    try:
        for batch in file.iter_batches(batch_size=4096, columns=columns + [vectors] * bool(vectors)):
            rows = batch.select(columns).to_pylist()
            if vectors:  # as arrays: a list of Python floats takes 20 times the time
                for fields, value in zip(rows, batch.column(vectors), strict=True):
                    fields[vectors] = value.values.to_numpy(zero_copy_only=False) if value.is_valid else None
            yield from rows
            row += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, f"after row {row} ({error})") from error


def _text(path: str, name: str) -> Iterator[Record | DeadLetter]:
    data = b"".join(_lines(path))
    try:
        text = data.decode("utf-8")
        if not text.strip():
            raise ValueError("the file holds no text")
        yield Record(name, text, "", 1, data)
    except ValueError as error:
        yield DeadLetter(path, 1, "read", str(error))


def read_records(path: str, format: CorpusFormat, base: str) -> Iterator[Record | DeadLetter]:
    """A file's records in order; a text file is one document, its id the path below `base`.

    Raises ArtifactMismatch for a file that is not as the `clean` that wrote it left it.
    """
    _check_as_written(path, base)
    suffix = split_suffix(path)[0]
    if suffix in JSONL:
        return _jsonl(path, format)
    if suffix in PARQUET:
        return _parquet(path, format)
    return _text(path, relative_name(path, base))


def _check_as_written(path: str, base: str) -> None:
    if base.endswith(f"/{CLEANED}"):
        verified(base.removesuffix(CLEANED), CLEANED + relative_name(path, base), local=False)


def read_rows(path: str, format: CorpusFormat, base: str, more: tuple[str, ...] = ()) -> Iterator[Row | Refused | None]:
    """What `read_records` yields, as tuples; None for an empty line. `more` names Parquet columns to read as well."""
    _check_as_written(path, base)
    suffix = split_suffix(path)[0]
    if suffix in JSONL:
        return _jsonl_rows(path, format)
    if suffix in PARQUET:
        return _parquet_with_fields(path, format, more)
    records = _text(path, relative_name(path, base))
    return ((r.row, r.id, r.text, NO_FIELDS, r.raw) if isinstance(r, Record) else Refused(r, None) for r in records)


def relative_name(path: str, base: str) -> str:
    return path[len(base) :].lstrip("/\\") if path.startswith(base) else os.path.basename(path)
