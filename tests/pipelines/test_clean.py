"""Clean: byte-identical records, counts, the same bytes twice, and what is refused."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import clean
from pipelines.config import CleanConfig
from pipelines.stage import METRICS
from schemas.errors import ArtifactMismatch, ConfigError, FailureBudgetExceeded
from schemas.records import Removal, text_sha256
from schemas.removals import removals_to_jsonl

# Spacing, key order, escapes and a missing last line end that a parse and a dump would not keep.
RAW = [
    b'{"text": "One.",   "id": "a", "extra": [1, 2.50]}\n',
    b'{"id": "b", "text": "Tw\\u00f6.", "n": 1e3}\r\n',
    b'{"id": "c", "text": "Three."}\n',
    b'{"id": 4, "text": "Four."}',
]
TEXTS = {"a": "One.", "b": "Twö.", "c": "Three.", "4": "Four."}


def removals(path: Path, ids, decision="approved", texts=TEXTS) -> str:
    rows = [Removal(i, text_sha256(texts.get(i, "?")), decision, "because", "me", "today") for i in ids]
    path.write_bytes(removals_to_jsonl(rows))
    return str(path)


def run_clean(corpus, removal_path, output, **options):
    return clean.run(CleanConfig(corpus=str(corpus), removals=removal_path, output=str(output), **options))


def tree(folder) -> dict:
    """All files but the one that holds clock times."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    assert found.pop(METRICS)
    return found


def test_kept_lines_keep_their_bytes_and_counts_add_up(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"".join(RAW))
    manifest = run_clean(tmp_path / "c.jsonl", removals(tmp_path / "r.jsonl", ["b"]), tmp_path / "out")
    assert manifest.counts == {"in": 4, "kept": 3, "removed": 1, "dead": 0}
    assert (tmp_path / "out/corpus/c.jsonl").read_bytes() == RAW[0] + RAW[2] + RAW[3]
    taken = json.loads((tmp_path / "out/removed/00000.jsonl").read_text())
    assert taken["raw"].encode() == RAW[1]
    assert (taken["id"], taken["row"], taken["reason"], taken["decided_by"]) == ("b", 2, "because", "me")


def test_the_same_removals_twice_give_the_same_bytes(tmp_path):
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"".join(RAW)))
    path = removals(tmp_path / "r.jsonl", ["a", "4"])
    for name in ("one", "two"):
        run_clean(tmp_path / "c.jsonl.gz", path, tmp_path / name)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert gzip.decompress((tmp_path / "one/corpus/c.jsonl.gz").read_bytes()) == RAW[1] + RAW[2]


def test_a_cleaned_folder_is_a_corpus_again(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"".join(RAW))
    run_clean(tmp_path / "c.jsonl", removals(tmp_path / "r.jsonl", ["a"]), tmp_path / "v1")
    run_clean(tmp_path / "v1", removals(tmp_path / "r2.jsonl", ["c"]), tmp_path / "v2")
    assert (tmp_path / "v2/corpus/c.jsonl").read_bytes() == RAW[1] + RAW[3]


def test_parquet_keeps_every_column_type_and_metadata(tmp_path):
    table = pa.table(
        {
            "id": list("abcd"),
            "text": list("wxyz"),
            "n": pa.array([1, None, 3, 4], pa.int8()),
            "v": [[1.5], [], None, [2]],
        }
    ).replace_schema_metadata({"owner": "me"})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=2)
    path = removals(tmp_path / "r.jsonl", ["c"], texts={"c": "y"})
    assert run_clean(tmp_path / "c.parquet", path, tmp_path / "out").counts["kept"] == 3
    found = pq.read_table(tmp_path / "out/corpus/c.parquet")
    assert found.equals(table.take([0, 1, 3])) and found.schema.metadata[b"owner"] == b"me"


FORM_RAW = [
    b'{"completion": "b\\u00e9",  "prompt": "a ", "id": "p"}\n',
    b'{"id": "m", "messages": [{"content": "Hi", "name": 1, "role": "user"},{"role":"assistant","content":"Yo"}]}\r\n',
    b'{"id": "t", "text": "Plain.", "prompt": null, "weight": 1.50}\n',
    b'{"id": "q", "prompt": "", "completion": "c"}',
]
FORM_TEXTS = {"p": "a bé", "m": "user: Hi\nassistant: Yo", "t": "Plain.", "q": "c"}


@pytest.mark.parametrize("taken", [["p"], ["m"], ["p", "m"], ["t"], ["q"]])
def test_prompts_with_completions_and_chats_keep_their_bytes_and_are_removed_by_id_and_text(tmp_path, taken):
    (tmp_path / "c.jsonl").write_bytes(b"".join(FORM_RAW))
    path = removals(tmp_path / "r.jsonl", taken, texts=FORM_TEXTS)
    manifest = run_clean(tmp_path / "c.jsonl", path, tmp_path / "out")
    assert manifest.counts == {"in": 4, "kept": 4 - len(taken), "removed": len(taken), "dead": 0}
    kept = [raw for raw in FORM_RAW if json.loads(raw)["id"] not in taken]
    assert (tmp_path / "out/corpus/c.jsonl").read_bytes() == b"".join(kept)
    rows = [json.loads(line) for line in (tmp_path / "out/removed/00000.jsonl").read_text().splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [(i, FORM_TEXTS[i]) for i in taken]
    assert b"".join(row["raw"].encode() for row in rows) == b"".join(raw for raw in FORM_RAW if raw not in kept)


@pytest.mark.parametrize("judged", [{"p": "a be"}, {"m": "Hi\nYo"}])
def test_a_completion_or_a_chat_that_was_changed_is_refused(tmp_path, judged):
    (tmp_path / "c.jsonl").write_bytes(b"".join(FORM_RAW))
    with pytest.raises(ArtifactMismatch, match="found 1 that have another text"):
        run_clean(tmp_path / "c.jsonl", removals(tmp_path / "r.jsonl", judged, texts=judged), tmp_path / "out")


def test_parquet_with_prompts_and_chats_keeps_every_column(tmp_path):
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.int8())])
    chats = [None, [("user", "Hi", 1), ("assistant", "Yo", None)], None, [("assistant", "Oh", 0)]]
    table = pa.table(
        {
            "id": ["p", "m", "q", "n"],
            "prompt": pa.array(["a ", None, "", "unused"], pa.large_string()),
            "completion": ["bé", None, "c", None],
            "messages": pa.array(chats, pa.list_(message)),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=3)
    path = removals(tmp_path / "r.jsonl", ["m", "q"], texts=FORM_TEXTS)
    assert run_clean(tmp_path / "c.parquet", path, tmp_path / "out").counts["removed"] == 2
    found = pq.read_table(tmp_path / "out/corpus/c.parquet")
    assert found.equals(table.take([0, 3])) and found.schema == table.schema


def test_a_text_document_is_taken_out_whole(tmp_path):
    for name in ("x", "y"):
        (tmp_path / f"{name}.txt").write_text(f"Document {name}.\n")
    path = removals(tmp_path / "r.jsonl", ["x.txt"], texts={"x.txt": "Document x.\n"})
    run_clean(tmp_path / "*.txt", path, tmp_path / "out")
    assert os.listdir(tmp_path / "out/corpus") == ["y.txt"]


@pytest.mark.parametrize(
    "ids, texts, error, message",
    [
        (["a", "zz"], TEXTS, ArtifactMismatch, r"found 1 that stand nowhere in the corpus \(zz\)"),
        (["a"], {"a": "Other."}, ArtifactMismatch, r"found 1 that have another text .* \(a\)"),
    ],
)
def test_an_unknown_id_or_changed_text_is_refused(tmp_path, ids, texts, error, message):
    (tmp_path / "c.jsonl").write_bytes(b"".join(RAW))
    path = removals(tmp_path / "r.jsonl", ids, texts=texts)
    with pytest.raises(error, match=message):
        run_clean(tmp_path / "c.jsonl", path, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["c.jsonl", "r.jsonl"]


def test_only_approved_removals_are_acted_on(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"".join(RAW))
    with pytest.raises(ConfigError, match="at least one removal whose decision is 'approved', found none"):
        run_clean(tmp_path / "c.jsonl", removals(tmp_path / "r.jsonl", ["a"], "proposed"), tmp_path / "out")
    mixed = removals(tmp_path / "r.jsonl", ["a"]), removals(tmp_path / "s.jsonl", ["b"], "rejected")
    (tmp_path / "t.jsonl").write_bytes(b"".join(Path(p).read_bytes() for p in mixed))
    assert run_clean(tmp_path / "c.jsonl", str(tmp_path / "t.jsonl"), tmp_path / "out").counts["removed"] == 1


def test_a_bad_line_fails_clean_unless_it_is_allowed(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(RAW[0] + b"bad\n" + RAW[2])
    path = removals(tmp_path / "r.jsonl", ["a"])
    with pytest.raises(FailureBudgetExceeded, match=r"1 of 3 records refused, at most 0\.00% may be"):
        run_clean(tmp_path / "c.jsonl", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest = run_clean(tmp_path / "c.jsonl", path, tmp_path / "out", max_dead_fraction=0.5)
    assert manifest.counts == {"in": 3, "kept": 1, "removed": 1, "dead": 1}
    assert (tmp_path / "out/corpus/c.jsonl").read_bytes() == RAW[2]
