"""Rankings survive both formats, and a TREC run names each example once, by its best passage."""

import io

import pyarrow.parquet as pq

from schemas.rankings import (
    best_per_example,
    rankings_from_jsonl,
    rankings_from_table,
    rankings_to_jsonl,
    rankings_to_table,
    rankings_to_trec,
)
from schemas.records import Proponent
from schemas.tables import parquet_bytes


def proponent(fact_id: str, rank: int, example_id: str, start: int = 0, text: str = "text") -> Proponent:
    signals = {"bm25": 1 / 3, "gradient": -1e-300}
    score = 1 - rank / 10
    return Proponent(fact_id, rank, score, example_id, start, start + len(text), signals, text, "src", "ab", 0.1)


RANKINGS = [
    proponent("f1", 1, "z1", 10, "été\u2028 \n日本"),
    proponent("f1", 2, "z2"),
    proponent("f1", 3, "z1", 0),
    proponent("f1", 4, "z 3\tb"),
    proponent("f2", 1, "z1"),
]


def test_jsonl_reads_back_as_written_one_line_a_proponent():
    data = rankings_to_jsonl(RANKINGS)
    assert list(rankings_from_jsonl(data)) == RANKINGS
    assert data.count(b"\n") == len(RANKINGS)
    assert "日本".encode() in data


def test_parquet_reads_back_as_written():
    table = pq.read_table(io.BytesIO(parquet_bytes(rankings_to_table(RANKINGS))))
    assert list(rankings_from_table(table)) == RANKINGS


def test_best_per_example_keeps_the_first_passage_of_each():
    assert best_per_example(RANKINGS[:4]) == [RANKINGS[0], RANKINGS[1], RANKINGS[3]]


def test_trec_run_has_each_example_once_per_fact_ranks_without_gaps_and_no_space_in_an_id():
    assert rankings_to_trec(RANKINGS, "run").decode().splitlines() == [
        "f1 Q0 z1 1 0.9 run",
        "f1 Q0 z2 2 0.8 run",
        "f1 Q0 z_3_b 3 0.6 run",
        "f2 Q0 z1 1 0.9 run",
    ]


def test_trec_run_groups_a_fact_whose_rows_are_apart():
    mixed = [RANKINGS[0], RANKINGS[4], RANKINGS[1]]
    rows = [line.split()[:4] for line in rankings_to_trec(mixed).decode().splitlines()]
    assert rows == [["f1", "Q0", "z1", "1"], ["f1", "Q0", "z2", "2"], ["f2", "Q0", "z1", "1"]]
