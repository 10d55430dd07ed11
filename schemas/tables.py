"""The pyarrow schema of every Parquet file we write, and the strict conversion of rows to it.

Beam's and pyarrow's writers drop unknown keys and turn a missing field into NULL; here both are errors.
"""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


PASSAGES = _schema(
    example_id=pa.string(),
    start=pa.int64(),
    end=pa.int64(),
    text=pa.string(),
    source=pa.string(),
    sha256=pa.string(),
    file=pa.string(),
    row=pa.int64(),
    parts=pa.string(),
)
# A passage that is a near-duplicate of one of the document `seed`, which was found for a request or a fact; in a
# `renamed` one a name stands in the place of another.
MATCHES = pa.schema([*_schema(seed=pa.string(), similarity=pa.float64(), renamed=pa.bool_()), *PASSAGES])
# Scores of a shard's candidates: `fact` is the fact's position in the facts file, `passage` the index's int64 id.
CANDIDATES = _schema(
    fact=pa.int64(),
    passage=pa.int64(),
    example_id=pa.string(),
    start=pa.int64(),
    signal_scores=pa.list_(pa.float64()),
)
# The passages that hold a side of a fact best, by BM25 of it alone; `side` is its place in a block of sides.
ANCHORED = _schema(side=pa.int64(), passage=pa.int64(), example_id=pa.string(), start=pa.int64(), score=pa.float64())
# Where the passages of a seeded sample stand, smallest key first; an index keeps it, so that an update reads no old id.
SAMPLE = _schema(key=pa.binary(), shard=pa.string(), row=pa.int64())
RANKINGS = _schema(
    fact_id=pa.string(),
    rank=pa.int64(),
    score=pa.float64(),
    example_id=pa.string(),
    start=pa.int64(),
    end=pa.int64(),
    signals=pa.map_(pa.string(), pa.float64()),
    text=pa.string(),
    source=pa.string(),
    sha256=pa.string(),
    coverage=pa.float64(),
    names=pa.list_(pa.string()),
    tokens=pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("share", pa.float64())])),
    file=pa.string(),
    row=pa.int64(),
)


def to_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of exactly the schema's columns; raises ValueError for a missing, unknown or null field."""
    names = set(schema.names)
    for position, row in enumerate(rows):
        if row.keys() != names:
            odd = ", ".join(sorted(row.keys() ^ names))
            raise ValueError(f"row {position}: missing or unknown fields: {odd}")
        for name, value in row.items():
            if value is None:
                raise ValueError(f"row {position}: field '{name}' is null")
    columns = {
        name: [list(row[name].items()) if pa.types.is_map(schema.field(name).type) else row[name] for row in rows]
        for name in schema.names
    }
    return pa.table(columns, schema=schema)


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as one Parquet file, zstd, in row groups of at most 10,000 rows: the same table, the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=10_000)
    return sink.getvalue()
