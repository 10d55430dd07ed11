"""Reading corpora: every format, and each bad input with its message and nothing left behind."""

import gzip
import json
import os
import tracemalloc
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import index, scan
from pipelines.config import IndexConfig
from pipelines.corpus import CorpusFormat, Record, Refused, list_corpus, read_records, read_rows
from schemas.errors import ConfigError, FailureBudgetExceeded
from schemas.records import DeadLetter, text_sha256

GOOD = [{"id": f"e{n}", "text": f"Sentence number {n} of the corpus."} for n in range(200)]
PLAIN = CorpusFormat()


def lines(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def bm25_index(path, output, **options):
    return index.run(IndexConfig(corpus=str(path), output=str(output), signals="bm25", **options))


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name, pack", [("c.jsonl", bytes), ("c.jsonl.gz", gzip.compress), ("c.jsonl.zst", zstd)])
def test_jsonl_reads_alike_in_every_compression(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(lines(GOOD)))
    records = list(read_records(str(tmp_path / name), PLAIN, ""))
    assert [(r.id, r.text, r.row) for r in records] == [(g["id"], g["text"], n) for n, g in enumerate(GOOD, 1)]
    assert b"".join(r.raw for r in records) == lines(GOOD)


def test_parquet_with_other_column_names(tmp_path):
    pq.write_table(pa.table({"key": [1, 2], "body": ["one text", "two"], "n": [0, 0]}), tmp_path / "c.parquet")
    records = list(read_records(str(tmp_path / "c.parquet"), CorpusFormat("key", "body"), ""))
    assert [(r.id, r.text) for r in records] == [("1", "one text"), ("2", "two")]


def test_text_files_are_one_document_each_named_below_the_glob(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("A document.")
    (record,) = read_records(str(tmp_path / "a" / "x.txt"), PLAIN, str(tmp_path))
    assert (record.id, record.text) == ("a/x.txt", "A document.")


FORMS = [
    {"prompt": "Was ist é? ", "id": "p", "completion": "Ein Buchstabe.", "source": "s"},
    {"id": "q", "prompt": "", "completion": "Unasked."},
    {
        "id": "m",
        "messages": [
            {"role": "system", "content": ""},
            {"content": "Hi", "role": "user", "name": "x"},
            {"role": "assistant", "content": "Yo.\nWhat?"},
        ],
    },
    {"id": "t", "text": "Plain wins.", "prompt": "p", "completion": "c", "messages": [{"role": "user"}]},
    {"id": "n", "text": None, "prompt": "p", "messages": [{"role": "assistant", "content": "Said."}]},
]
FORMS_READ = {
    "p": ("Was ist é? Ein Buchstabe.", '{"completion": "Ein Buchstabe.", "prompt": "Was ist é? "}'),
    "q": ("Unasked.", '{"completion": "Unasked.", "prompt": ""}'),
    "m": (
        "system: \nuser: Hi\nassistant: Yo.\nWhat?",
        '{"messages": [{"content": "", "role": "system"}, {"content": "Hi", "role": "user"}, '
        '{"content": "Yo.\\nWhat?", "role": "assistant"}]}',
    ),
    "t": ("Plain wins.", ""),
    "n": ("assistant: Said.", '{"messages": [{"content": "Said.", "role": "assistant"}]}'),
}


def parquet(rows) -> bytes:
    """A table with all the columns that any of the rows has, null where a row has none."""
    names = dict.fromkeys(name for row in rows for name in row)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "name, pack",
    [
        ("c.jsonl", lines),
        ("c.jsonl.gz", lambda rows: gzip.compress(lines(rows))),
        ("c.jsonl.zst", lambda rows: zstd(lines(rows))),
        ("c.parquet", parquet),
    ],
)
def test_prompts_with_completions_and_chats_read_alike_in_every_format(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(FORMS))
    records = list(read_records(str(tmp_path / name), PLAIN, ""))
    assert {r.id: (r.text, r.parts) for r in records} == FORMS_READ
    assert [r.sha256 for r in records] == [text_sha256(FORMS_READ[r.id][0]) for r in records]
    assert (records[0].source, records[0].row, records[-1].row) == ("s", 1, 5)


@pytest.mark.parametrize("wanted", [{"prompt", "completion"}, {"messages"}])
def test_a_parquet_file_needs_no_text_column_beside_another_form(tmp_path, wanted):
    rows = [{name: row[name] for name in ("id", *wanted)} for row in FORMS[:3] if wanted <= row.keys()]
    (tmp_path / "c.parquet").write_bytes(parquet(rows))
    found = [(r.id, r.text, r.parts) for r in read_records(str(tmp_path / "c.parquet"), PLAIN, "")]
    assert found and found == [(row["id"], *FORMS_READ[row["id"]]) for row in rows]


def test_a_text_field_by_another_name_is_still_the_first(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(lines([{"id": "x", "prompt": "Only this.", "completion": "c"}]))
    (record,) = read_records(str(tmp_path / "c.jsonl"), CorpusFormat("id", "prompt"), "")
    assert (record.text, record.parts) == ("Only this.", "")


def test_the_text_and_the_parts_take_no_notice_of_key_order_and_unknown_keys(tmp_path):
    turned = [dict(reversed(row.items())) | {"extra": 1} for row in FORMS]
    turned[2]["messages"] = [dict(reversed(message.items())) | {"weight": 0} for message in turned[2]["messages"]]
    (tmp_path / "c.jsonl").write_bytes(lines(turned))
    assert {r.id: (r.text, r.parts) for r in read_records(str(tmp_path / "c.jsonl"), PLAIN, "")} == FORMS_READ


USER, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
BAD_FORMS = [
    ({"prompt": "p"}, "field 'completion' must be text that is not empty, found "),
    ({"completion": "c"}, "field 'prompt' must be a string, found "),
    ({"prompt": "p", "completion": " \n"}, r"field 'completion' must be text that is not empty, found ' \n'"),
    ({"prompt": 5, "completion": "c"}, "field 'prompt' must be a string, found 5"),
    ({"prompt": [USER], "completion": [SAID]}, "field 'prompt' must be a string, found [{"),
    ({"text": " ", "prompt": "p", "completion": "c"}, "field 'text' must be text that is not empty, found ' '"),
    ({"messages": "Hi"}, "field 'messages' must be a list of at least one {role, content}, found 'Hi'"),
    ({"messages": []}, "field 'messages' must be a list of at least one {role, content}, found an empty list"),
    ({"messages": ["Hi", "Yo"]}, "message 1 must be an object with role and content, found 'Hi'"),
    ({"messages": [SAID, {"content": "x"}]}, "message 2: field 'role' must be text that is not empty, found "),
    ({"messages": [{**SAID, "role": ""}]}, "message 1: field 'role' must be text that is not empty, found ''"),
    ({"messages": [SAID, {"role": "user"}]}, "message 2: field 'content' must be a string, found "),
    ({"messages": [{**SAID, "content": None}]}, "message 1: field 'content' must be a string, found None"),
    ({"messages": [{**SAID, "content": ["Yo"]}]}, "message 1: field 'content' must be a string, found ['Yo']"),
    (
        {"messages": [USER, {**SAID, "content": " "}]},
        "field 'messages' must hold something that the assistant says, found the roles user, assistant",
    ),
    ({"messages": [USER]}, "field 'messages' must hold something that the assistant says, found the roles user"),
]


@pytest.mark.parametrize("name, pack", [("c.jsonl", lines), ("c.parquet", parquet)])
@pytest.mark.parametrize("fields, reason", BAD_FORMS)
def test_a_form_of_the_wrong_shape_is_a_dead_letter_in_both_formats(tmp_path, name, pack, fields, reason):
    extra = {"text": None} if name == "c.parquet" else {}  # a column, so that the file is a corpus
    (tmp_path / name).write_bytes(pack([{"id": "x", **extra, **fields}]))
    (letter,) = read_records(str(tmp_path / name), PLAIN, "")
    assert isinstance(letter, DeadLetter)
    assert (letter.file, letter.row, letter.step) == (str(tmp_path / name), 1, "read")
    assert letter.reason.startswith(reason)


def test_a_lone_surrogate_in_a_form_is_a_dead_letter_though_two_would_make_a_character(tmp_path):
    rows = [
        {"id": "x", "prompt": "\ud83d", "completion": "\ude00"},
        {"id": "y", "messages": [{**SAID, "content": "\ud800"}]},
    ]
    (tmp_path / "c.jsonl").write_bytes(lines(rows))
    letters = list(read_records(str(tmp_path / "c.jsonl"), PLAIN, ""))
    assert [("surrogates not allowed" in letter.reason) for letter in letters] == [True, True]


def test_what_is_found_is_shown_by_its_beginning_only(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(lines([{"id": "x", "messages": [{**SAID, "content": [{"t": "y" * 10_000}]}]}]))
    (letter,) = read_records(str(tmp_path / "c.jsonl"), PLAIN, "")
    assert len(letter.reason) < 200 and len(letter.record) <= 200


def test_an_index_keeps_the_parts_of_its_examples_and_none_of_plain_text(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(lines(GOOD[:3] + FORMS))
    bm25_index(tmp_path / "c.jsonl", tmp_path / "index")
    (file,) = (tmp_path / "index/examples").iterdir()
    found = {row["example_id"]: (row["text"], row["parts"]) for row in pq.read_table(file).to_pylist()}
    assert found == {row["id"]: (row["text"], "") for row in GOOD[:3]} | FORMS_READ


BAD_LINES = [
    (b"{not json}\n", "not JSON"),
    (b'{"id": "x", "text": "caf\xe9"}\n', "not UTF-8: byte 0xe9"),
    (b'{"text": "no id"}\n', "field 'id' must be a non-empty string or an integer, found no such field"),
    (b'{"id": "x"}\n', "field 'text' must be text that is not empty, found no such field"),
    (b'{"id": "x", "text": null}\n', "field 'text' must be text that is not empty, found None"),
    (b'{"id": "x", "text": "  "}\n', "field 'text' must be text that is not empty, found '  '"),
    (b'{"id": "", "text": "t"}\n', "field 'id' must be a non-empty string or an integer, found ''"),
    (b'["a list"]\n', "expected a JSON object, found list"),
    (b'{"id": "x", "text": "\\ud800"}\n', "surrogates not allowed"),
    (b"[" * 100_000 + b"\n", "not JSON"),
    (b'{"id": "x", "prompt": "p"}\n', "field 'completion' must be text that is not empty, found no such field"),
    (b'{"id": "x", "messages": []}\n', "field 'messages' must be a list of at least one {role, content}"),
]


@pytest.mark.parametrize("line, reason", BAD_LINES)
def test_a_bad_line_becomes_a_dead_letter_with_file_line_and_reason(tmp_path, line, reason):
    path = tmp_path / "c.jsonl"
    path.write_bytes(lines(GOOD) + line)
    manifest = bm25_index(path, tmp_path / "index")
    assert manifest.counts == {"in": 201, "kept": 200, "removed": 0, "dead": 1}
    (letter,) = [json.loads(row) for row in (tmp_path / "index/dead_letters/00000.jsonl").read_text().splitlines()]
    assert (letter["file"], letter["row"]) == (str(path), 201)
    assert reason in letter["reason"]


def test_a_repeated_id_is_refused_across_files_and_the_first_is_kept(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD))
    (tmp_path / "b.jsonl").write_bytes(lines([{"id": "e5", "text": "Another text."}, {"id": "f", "text": "New."}]))
    manifest = bm25_index(tmp_path / "*.jsonl", tmp_path / "index")
    assert manifest.counts == {"in": 202, "kept": 201, "removed": 0, "dead": 1}
    letter = json.loads((tmp_path / "index/dead_letters/repeated.jsonl").read_text())
    assert (letter["file"], letter["row"]) == (str(tmp_path / "b.jsonl"), 1)
    assert "ids must be unique" in letter["reason"]
    tables = [pq.read_table(p) for p in sorted((tmp_path / "index/examples").iterdir())]
    texts = {row["example_id"]: row["text"] for table in tables for row in table.to_pylist()}
    assert texts["e5"] == GOOD[5]["text"] and "f" in texts


def test_over_the_budget_the_job_fails_and_leaves_nothing(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(lines(GOOD) + b"bad\n" * 3)
    with pytest.raises(FailureBudgetExceeded, match=r"3 of 203 records refused, at most 1.00% may be(.|\n)*row 201"):
        bm25_index(path, tmp_path / "index")
    assert os.listdir(tmp_path) == ["c.jsonl"]
    assert bm25_index(path, tmp_path / "index", max_dead_fraction=0.02).counts["dead"] == 3


@pytest.mark.parametrize("name, pack", [("c.jsonl.gz", gzip.compress), ("c.jsonl.zst", zstd)])
def test_a_truncated_file_is_refused(tmp_path, name, pack):
    data = pack(lines([{"id": f"e{n}", "text": os.urandom(20).hex()} for n in range(5000)]))
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"truncated or damaged after line \d+.*copy it again"):
        bm25_index(tmp_path / name, tmp_path / "index")
    assert os.listdir(tmp_path) == [name]


def test_missing_files_folders_and_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected at least one file, found none"):
        list_corpus(str(tmp_path / "*.jsonl"))
    with pytest.raises(ConfigError, match="found a folder; give a glob"):
        list_corpus(str(tmp_path))
    (tmp_path / "c.csv").write_text("id,text\n")
    with pytest.raises(ConfigError, match=r"found another suffix; rename it, or narrow the glob"):
        list_corpus(str(tmp_path / "*"))
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match=r"expected a column 'text', found id; name the columns with"):
        list(read_records(str(tmp_path / "c.parquet"), PLAIN, ""))


def test_a_corpus_without_a_good_record_is_refused(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"bad\n")
    with pytest.raises(ConfigError, match="found none among 1"):
        bm25_index(tmp_path / "c.jsonl", tmp_path / "index", max_dead_fraction=1.0)


def test_an_empty_compressed_file_is_a_broken_copy(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(GOOD)))
    with pytest.raises(ConfigError, match=r"a\.jsonl\.gz: .*truncated or damaged at its start"):
        bm25_index(tmp_path / "*.jsonl.gz", tmp_path / "index")


def test_a_damaged_parquet_page_is_refused_and_nothing_stays(tmp_path):
    table = pa.table({"id": [str(n) for n in range(2000)], "text": [os.urandom(30).hex() for _ in range(2000)]})
    pq.write_table(table, tmp_path / "c.parquet", compression="zstd")
    data = bytearray((tmp_path / "c.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 5000] = bytes(5000)
    (tmp_path / "c.parquet").write_bytes(bytes(data))
    with pytest.raises(ConfigError, match="truncated or damaged after row"):
        bm25_index(tmp_path / "c.parquet", tmp_path / "index")
    assert os.listdir(tmp_path) == ["c.parquet"]


def test_an_empty_file_among_others_and_blank_lines_are_no_records(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(b"\n" + lines(GOOD[:3]) + b"\n\n")
    assert bm25_index(tmp_path / "*.jsonl", tmp_path / "index").counts["in"] == 3


def test_a_byte_order_mark_is_no_part_of_the_record(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(GOOD[:1]))
    (record,) = read_records(str(tmp_path / "c.jsonl"), PLAIN, "")
    assert isinstance(record, Record) and not isinstance(record, DeadLetter)


def found_repeated(folder) -> set[tuple[str, int]]:
    path = folder / "dead_letters/repeated.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert len({(row["file"], row["row"]) for row in rows}) == len(rows)
    return {(os.path.basename(row["file"]), row["row"]) for row in rows}


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_repeated_ids_are_the_same_however_few_are_compared_at_once(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(scan, "HASHES_AT_ONCE", at_once)
    random, seen, expected = Random(0), set(), set()
    for name in ("a", "b", "c"):
        ids = [str(random.randrange(60)) for _ in range(40 if name != "b" else 0)]
        for row, example in enumerate(ids, 1):
            expected |= {(f"{name}.jsonl", row)} if example in seen else set()
            seen.add(example)
        (tmp_path / f"{name}.jsonl").write_bytes(lines([{"id": i, "text": f"Number {i}."} for i in ids]))
    manifest = bm25_index(tmp_path / "*.jsonl", tmp_path / "index", max_dead_fraction=1.0)
    assert found_repeated(tmp_path / "index") == expected and len(expected) > 20
    assert manifest.counts == {"in": 80, "kept": len(seen), "removed": 0, "dead": len(expected)}
    (letters,) = [info for info in manifest.files if info.name == "dead_letters/repeated.jsonl"]
    assert letters.rows == len(expected)


def test_more_repeated_ids_than_the_budget_are_told_by_file_and_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD))
    (tmp_path / "b.jsonl").write_bytes(lines(GOOD))
    with pytest.raises(
        FailureBudgetExceeded, match=r"200 of 400 records(.|\n)*b\.jsonl, row 1: the id (.|\n)* \.\.\.$"
    ):
        bm25_index(tmp_path / "*.jsonl", tmp_path / "index")


def test_ids_are_integers_of_any_size_and_a_number_is_the_string_of_its_digits(tmp_path):
    big = 2**63
    rows = [{"id": big - 1, "text": "One."}, {"id": big, "text": "Two."}, {"id": -big * 10**30, "text": "Three."}]
    (tmp_path / "a.jsonl").write_bytes(lines([*rows, {"id": 7, "text": "Seven."}]))
    more = [{"id": str(big), "text": "Two again."}, {"id": "7", "text": "Seven again."}, {"id": "07", "text": "Other."}]
    (tmp_path / "b.jsonl").write_bytes(lines(more))
    refused = [{"id": value, "text": "No id."} for value in (1.0, True, None, [1], 2.0**64)]
    (tmp_path / "c.jsonl").write_bytes(lines(refused))
    bm25_index(tmp_path / "*.jsonl", tmp_path / "index", max_dead_fraction=0.9)
    assert found_repeated(tmp_path / "index") == {("b.jsonl", 1), ("b.jsonl", 2)}
    tables = [pq.read_table(p) for p in sorted((tmp_path / "index/examples").iterdir())]
    ids = [row["example_id"] for table in tables for row in table.to_pylist()]
    assert ids == ["9223372036854775807", "9223372036854775808", str(-big * 10**30), "7", "07"]
    reasons = [
        json.loads(line)["reason"] for line in (tmp_path / "index/dead_letters/00002.jsonl").read_text().splitlines()
    ]
    assert len(reasons) == 5 and all("must be a non-empty string or an integer, found" in reason for reason in reasons)


def test_ids_over_2_to_63_in_parquet_are_the_same_as_in_jsonl(tmp_path):
    pq.write_table(pa.table({"id": pa.array([2**64 - 1], pa.uint64()), "text": ["One."]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_bytes(lines([{"id": 2**64 - 1, "text": "Again."}]))
    bm25_index(tmp_path / "*", tmp_path / "index", max_dead_fraction=0.5)
    assert found_repeated(tmp_path / "index") == {("b.jsonl", 1)}


BAD_VECTORS = [
    ([1.0, 2.0], "must be a list of 3 finite numbers, not all zero (as the corpus' first record has), found 2"),
    ([0.0, 0.0, 0.0], "must be a list of 3 finite numbers, not all zero, found zeros"),
    ([1.0, float("nan"), 0.0], "found NaN or infinity"),
    ([float("inf"), 0.0, 0.0], "found NaN or infinity"),
    ([1e39, 0.0, 0.0], "found NaN or infinity"),  # no float32
    (None, "must be a list of 3 finite numbers, not all zero, found None"),
    ("1 2 3", "found '1 2 3'"),
    ([[1.0, 2.0, 3.0]], "found [[1.0, 2.0, 3.0]]"),
    ([], "found []"),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("vector, reason", BAD_VECTORS)
def test_a_vector_of_the_wrong_kind_is_a_dead_letter_with_the_reason(tmp_path, suffix, vector, reason):
    good = [{**row, "v": [1.0, float(n), 2.0]} for n, row in enumerate(GOOD[:9])]
    rows, path = [*good, {"id": "bad", "text": "A bad vector.", "v": vector}], tmp_path / f"c{suffix}"
    if suffix == ".jsonl":
        path.write_bytes(lines(rows))
    else:
        if not (vector is None or (isinstance(vector, list) and all(isinstance(value, float) for value in vector))):
            pytest.skip("a column of lists of numbers cannot hold it")
        path.write_bytes(parquet(rows))
    config = IndexConfig(
        corpus=str(path), output=str(tmp_path / "index"), embedding_field="v", max_dead_fraction=0.1, num_pseudo_facts=5
    )
    assert index.run(config).counts == {"in": 10, "kept": 9, "removed": 0, "dead": 1}
    (letter,) = [json.loads(row) for row in (tmp_path / "index/dead_letters/00000.jsonl").read_text().splitlines()]
    assert letter["row"] == 10 and letter["reason"].startswith("field 'v' must") and letter["reason"].endswith(reason)


def test_empty_documents_take_no_memory_however_many(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": "x", "text": ""}\n' * 50_000)
    out = tmp_path / "out"
    out.mkdir()
    tracemalloc.start()
    try:
        done = scan.scan_shard({"path": str(path), "file": 0}, str(tmp_path), out, PLAIN, "")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done.counts == {"in": 50_000, "dead": 50_000}
    assert len(done.facts["first"]) == scan.SHOWN and "row 1: field 'text'" in done.facts["first"][0]
    letters = (out / "dead_letters/00000.jsonl").read_bytes()
    assert letters.count(b"\n") == 50_000 == done.rows["dead_letters/00000.jsonl"]
    assert peak < 2 * 2**20  # held, the letters take 40 MB


def test_a_corpus_of_empty_documents_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b'{"id": "x", "text": " "}\n' * 1000)
    with pytest.raises(ConfigError, match=r"found none among 1000\n.*c\.jsonl, row 1: field 'text' must be"):
        bm25_index(tmp_path / "c.jsonl", tmp_path / "index", max_dead_fraction=1.0)
    assert os.listdir(tmp_path) == ["c.jsonl"]


ODD_LINES = [
    *(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in [*FORMS, GOOD[0]]),
    b"\xef\xbb\xbf" + b'{"id": "a", "text": "t"}\n', b'{"id": 7, "text": "t"}\r\n', b'{"id": "a", "text": "t"}',
    b' {"id": "a", "text": "t"} \t\n', b'{"id": "a", "text": "t"} x\n', b'{"id": "a", "text": "t"}{}\n', b"\n", b"  \n",
    b'{"id": "", "text": "t"}\n', b'{"id": "a", "text": " \\u2003"}\n', b'{"id": "a", "text": "\\ud800"}\n',
    b'{"id": "\\udc00", "text": "t"}\n', b'{"id": "a", "text": "\\ud83d\\ude00"}\n', b'{"id": "a", "text": "\xff"}\n',
    b'{"id": true, "text": "t"}\n', b'{"id": "a", "text": null, "prompt": "p", "completion": "c"}\n', b'"id"\n',
    b'{"id": "a", "text": ["t"]}\n', b'["id", "text"]\n', b"7\n", b"bad\n", b'{"id": "a", "text": "t", "n": NaN}\n',
    b"[" * 5000 + b"\n", b'{"id": "a", "text": "t", "n": ' + b"9" * 5000 + b"}\n", b'{"id": "a", "text": "a\tb"}\n',
    b'{"id": "a", "text": "one", "text": "two"}\n', b'{"text": "t"}\n',
]  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
def test_rows_are_what_records_are(tmp_path, first):
    """Line by line, as the first one of a file and as a later one: a byte order mark may stand in the first alone."""
    seen = set()
    for number, line in enumerate(ODD_LINES):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(line if first else b'{"id": "first", "text": "t"}\n' + line)
        records = list(read_records(str(path), PLAIN, ""))
        rows = list(read_rows(str(path), PLAIN, ""))
        as_tuples = [r if isinstance(r, DeadLetter) else (r.row, r.id, r.text, r.raw) for r in records]
        found = [(*row[:3], row[4]) if isinstance(row, tuple) else row.letter for row in rows if row is not None]
        assert found == as_tuples
        assert rows.count(None) == (not line.strip())
        assert all(isinstance(row[3], dict) for row in rows if isinstance(row, tuple))
        seen |= {type(item) for item in rows}
    assert seen == {tuple, Refused, type(None)}


def test_rows_of_parquet_have_the_columns_that_are_asked_for(tmp_path):
    table = pa.table({"id": [1, 2], "url": ["u", None], "text": ["t", None], "n": [0, 0]})
    pq.write_table(table, tmp_path / "c.parquet")
    row, refused = read_rows(str(tmp_path / "c.parquet"), PLAIN, "", ("url", "nowhere"))
    assert row == (1, "1", "t", {"id": 1, "text": "t", "url": "u"}, None)
    assert [refused.letter] == list(read_records(str(tmp_path / "c.parquet"), PLAIN, ""))[1:]
    assert refused.given_id == 2
