"""Rows become exactly the schema's columns or nothing; the same table gives the same Parquet bytes."""

import io
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.records import Passage
from schemas.tables import CANDIDATES, MATCHES, PASSAGES, RANKINGS, parquet_bytes, to_table

TERMS = pa.schema([pa.field("term", pa.string(), False), pa.field("df", pa.int64(), False)])

PASSAGE = {
    "example_id": "z", "start": 0, "end": 3, "text": "été", "source": "s", "sha256": "ab", "file": "f", "row": 1,
    "parts": '{"completion": "té", "prompt": "é"}',
}  # fmt: skip
CANDIDATE = {"fact": 0, "passage": 2**40, "example_id": "z", "start": 0, "signal_scores": [1.5, -0.25]}


def read(data: bytes):
    return pq.read_table(io.BytesIO(data))


@pytest.mark.parametrize(
    ("row", "schema"),
    [
        (PASSAGE, PASSAGES),
        (CANDIDATE, CANDIDATES),
        ({"seed": "a", "similarity": 0.5, "renamed": True} | PASSAGE, MATCHES),
    ],
)
def test_rows_survive_parquet(row, schema):
    table = to_table([row, dict(reversed(row.items()))], schema)
    back = read(parquet_bytes(table))
    assert back.to_pylist() == [row, row]
    assert back.schema.equals(schema)


def test_a_map_column_keeps_its_pairs_in_order():
    row = {name: 0 for name in RANKINGS.names} | {
        name: "" for name in ("fact_id", "example_id", "text", "source", "sha256", "file")
    }
    row |= {"signals": {"bm25": 2.0, "a": -1.0}, "tokens": [], "names": ["b", "a"]}
    back = read(parquet_bytes(to_table([row], RANKINGS))).to_pylist()[0]
    assert back["signals"] == [("bm25", 2.0), ("a", -1.0)] and back["names"] == ["b", "a"]


def test_a_passage_is_a_row_of_its_table():
    passage = Passage("z", 0, 1, "t", "s", "ab", "f", 1)
    (back,) = read(parquet_bytes(to_table([asdict(passage)], PASSAGES))).to_pylist()
    assert back["parts"] == "" and Passage(**back) == passage


def test_no_rows_make_an_empty_table_with_all_columns():
    back = read(parquet_bytes(to_table([], TERMS)))
    assert (back.num_rows, back.schema.names) == (0, ["term", "df"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"term": "a"}, "^row 1: missing or unknown fields: df$"),
        ({"term": "a", "df": 1, "typo": 2}, "^row 1: missing or unknown fields: typo$"),
        ({"term": None, "df": 1}, "^row 1: field 'term' is null$"),
    ],
)
def test_a_missing_unknown_or_null_field_is_refused_with_its_row(row, message):
    with pytest.raises(ValueError, match=message):
        to_table([{"term": "ok", "df": 1}, row], TERMS)


def test_a_value_of_another_type_is_refused():
    with pytest.raises((TypeError, ValueError)):
        to_table([{"term": "a", "df": "many"}], TERMS)


def test_same_table_gives_same_bytes_in_row_groups_of_ten_thousand():
    rows = [{"term": f"t{i}", "df": i} for i in range(10_001)]
    data = parquet_bytes(to_table(rows, TERMS))
    assert data == parquet_bytes(to_table(rows, TERMS))
    assert pq.ParquetFile(io.BytesIO(data)).metadata.num_row_groups == 2
    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
