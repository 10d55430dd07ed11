"""Rankings on disk: JSONL, Parquet and TREC run, writer beside reader. One row is one proponent of one fact."""

import json
from collections.abc import Iterable, Iterator

import pyarrow as pa

from schemas.jsonl import jsonl_bytes
from schemas.records import Proponent
from schemas.tables import RANKINGS, to_table


def rankings_to_jsonl(proponents: Iterable[Proponent]) -> bytes:
    return jsonl_bytes(p.to_row() for p in proponents)


def rankings_from_jsonl(data: bytes) -> Iterator[Proponent]:
    for line in data.split(b"\n"):
        if line:
            yield Proponent.from_row(json.loads(line))


def rankings_to_table(proponents: Iterable[Proponent]) -> pa.Table:
    return to_table([p.to_row() for p in proponents], RANKINGS)


def rankings_from_table(table: pa.Table) -> Iterator[Proponent]:
    for row in table.to_pylist():
        row["signals"] = dict(row["signals"])
        row["tokens"] = [(token["start"], token["end"], token["share"]) for token in row["tokens"]]
        yield Proponent.from_row(row)


def best_per_example(proponents: Iterable[Proponent]) -> list[Proponent]:
    """One fact's ranking with each example's best passage only, as documents are judged and removed whole."""
    best: dict[str, Proponent] = {}
    for proponent in proponents:
        best.setdefault(proponent.example_id, proponent)
    return list(best.values())


def rankings_to_trec(proponents: Iterable[Proponent], tag: str = "proponent") -> bytes:
    """TREC's `qid Q0 docid rank score tag`, best passage per example; spaces in ids become underscores."""
    lines, by_fact = [], {}
    for p in proponents:
        by_fact.setdefault(p.fact_id, []).append(p)
    for fact_id, ranking in by_fact.items():
        for rank, p in enumerate(best_per_example(ranking), start=1):
            ids = ["_".join(name.split()) for name in (fact_id, p.example_id)]
            lines.append(f"{ids[0]} Q0 {ids[1]} {rank} {p.score:.9g} {tag}\n")
    return "".join(lines).encode()
