"""Clean: byte-identical records, redactions, versions, lists, exports, counts, and what is refused."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import clean, cleaning
from pipelines.config import CleanConfig
from pipelines.corpus import create_corpus_file, open_corpus_file, read_rows
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


def test_a_decision_that_only_a_ledger_can_take_back_is_refused(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"".join(RAW))
    path = removals(tmp_path / "r.jsonl", ["b"], "undone")
    with pytest.raises(ConfigError, match=r"r.jsonl, line 1: .*found 'undone', which .* --take` alone reads"):
        run_clean(tmp_path / "c.jsonl", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def decisions(path: Path, **asked) -> str:
    """Approved decisions by id: True removes, a list of spans redacts."""
    rows = [
        Removal(i, text_sha256(TEXTS[i]), "approved", "because", "me", "today", request_ids=("q1",))
        if spans is True
        else Removal(i, text_sha256(TEXTS[i]), "approved", "because", action="redact", spans=tuple(spans))
        for i, spans in asked.items()
    ]
    path.write_bytes(removals_to_jsonl(rows))
    return str(path)


def unpacked(path: Path) -> bytes:
    """A file's bytes as they are read, whatever its compression."""
    with open_corpus_file(str(path)) as file:
        return file.read()


REDACTED_B = RAW[1].replace(b"Tw\\u00f6", b"[REDACTED]")


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.jsonl.zst"])
def test_a_redaction_changes_the_bytes_of_its_span_alone(tmp_path, name):
    with create_corpus_file(tmp_path / name) as file:
        file.write(b"".join(RAW))
    path = decisions(tmp_path / "r.jsonl", b=[(0, 3)], c=True)
    manifest = run_clean(tmp_path / name, path, tmp_path / "out")
    assert manifest.counts == {"in": 4, "kept": 3, "removed": 1, "dead": 0} and manifest.details["redacted"] == 1
    assert unpacked(tmp_path / "out/corpus" / name) == RAW[0] + REDACTED_B + RAW[3]
    b, c = [json.loads(line) for line in (tmp_path / "out/removed/00000.jsonl").read_text().splitlines()]
    assert (b["action"], b["spans"], b["raw"].encode(), b["text"]) == ("redact", [[0, 3]], RAW[1], "Twö.")
    assert b["result_sha256"] == text_sha256("[REDACTED].") and b["kept_before"] == 1
    assert (c["action"], c["request_ids"], c["kept_before"]) == ("remove", ["q1"], 2)
    assert c["metadata"] == {"filter_reason": "because"}  # as datatrove's exclusions have it
    assert (tmp_path / "out/removed_ids.txt").read_text() == "c\n"


def test_a_parquet_redaction_changes_its_value_alone(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["One.", "Twö.", "Three.", "Four."], pa.large_string()),
            "id": pa.array(["a", "b", "c", "4"], pa.dictionary(pa.int8(), pa.string())),
            "n": [[1], [], None, [4]],
        }
    ).replace_schema_metadata({"owner": "me"})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=2, compression="gzip")
    path = decisions(tmp_path / "r.jsonl", b=[(0, 3)], c=[(0, 1), (2, 3)], a=True)
    manifest = run_clean(tmp_path / "c.parquet", path, tmp_path / "out")
    assert manifest.counts["kept"] == 3 and manifest.details["redacted"] == 2
    found = pq.read_table(tmp_path / "out/corpus/c.parquet")
    assert found["text"].to_pylist() == ["[REDACTED].", "[REDACTED]h[REDACTED]ee.", "Four."]
    assert found.schema == table.schema and found.schema.metadata[b"owner"] == b"me"
    assert found.drop_columns("text").equals(table.take([1, 2, 3]).drop_columns("text"))
    assert pq.read_table(tmp_path / "out/removed/00000.parquet").equals(table.take([0, 1, 2]))


def test_a_parquet_completion_is_redacted_and_a_chat_refused(tmp_path):
    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    table = pa.table(
        {
            "id": ["p", "m"],
            "prompt": ["a ", None],
            "completion": ["bé", None],
            "messages": pa.array([None, [("user", "Hi"), ("assistant", "Yo")]], message),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")

    def redact(example_id: str, span: tuple[int, int]) -> str:
        text = text_sha256(FORM_TEXTS[example_id])
        row = Removal(example_id, text, "approved", "", action="redact", spans=(span,))
        (tmp_path / "r.jsonl").write_bytes(removals_to_jsonl([row]))
        return str(tmp_path / "r.jsonl")

    run_clean(tmp_path / "c.parquet", redact("p", (3, 4)), tmp_path / "out")
    expected = table.to_pylist()
    expected[0]["completion"] = "b[REDACTED]"
    assert pq.read_table(tmp_path / "out/corpus/c.parquet").to_pylist() == expected
    with pytest.raises(ConfigError, match=r"found 1 redactions that cannot.*\n  m \(.*row 2\): .* JSONL alone"):
        run_clean(tmp_path / "c.parquet", redact("m", (6, 8)), tmp_path / "no")


def test_a_text_document_loses_a_span(tmp_path):
    (tmp_path / "x.txt").write_bytes("Wörd Ann.\r\nEnd\n".encode())
    row = Removal("x.txt", text_sha256("Wörd Ann.\r\nEnd\n"), "approved", "", action="redact", spans=((5, 8),))
    (tmp_path / "r.jsonl").write_bytes(removals_to_jsonl([row]))
    run_clean(tmp_path / "*.txt", str(tmp_path / "r.jsonl"), tmp_path / "out")
    assert (tmp_path / "out/corpus/x.txt").read_bytes() == "Wörd [REDACTED].\r\nEnd\n".encode()
    assert not (tmp_path / "out/attributes").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"id": "a", "text": "One.", "text": "Two."}\n', r"a \(.*c.jsonl, row 1\): the field 'text' stands twice"),
        (b'{"id": "a", "text": "On"}\n', r"the span \[0, 3\] ends after the text, which has 2 characters"),
    ],
)
def test_a_span_that_cannot_be_redacted_is_refused_by_name(tmp_path, line, message):
    (tmp_path / "c.jsonl").write_bytes(line)
    sha256 = text_sha256(json.loads(line)["text"])
    row = Removal("a", sha256, "approved", "", action="redact", spans=((0, 3),))
    (tmp_path / "r.jsonl").write_bytes(removals_to_jsonl([row]))
    with pytest.raises(ConfigError, match=message):
        run_clean(tmp_path / "c.jsonl", str(tmp_path / "r.jsonl"), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["c.jsonl", "r.jsonl"]


def corpus_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "corpus").rglob("*") if p.is_file()}


def test_twice_is_once_and_a_version_names_its_parent(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"".join(RAW))
    path = decisions(tmp_path / "r.jsonl", b=[(0, 3)], c=True)
    first = run_clean(tmp_path / "c.jsonl", path, tmp_path / "v1")
    assert (first.details["version"], first.details["parent_manifest_sha256"]) == (1, "")
    assert first.details["parent"] == [[str(tmp_path / "c.jsonl"), len(b"".join(RAW))]]
    for number in (2, 3):  # of the third, what the first did stands in the second's removed/earlier.jsonl
        parent = tmp_path / f"v{number - 1}"
        manifest = run_clean(parent, path, tmp_path / f"v{number}")
        assert corpus_of(tmp_path / f"v{number}") == corpus_of(tmp_path / "v1")
        assert manifest.counts == {"in": 3, "kept": 3, "removed": 0, "dead": 0}
        assert manifest.details["version"] == number
        assert (manifest.details["already_done"], manifest.details["redacted"]) == (2, 0)
        assert manifest.details["parent_manifest_sha256"] == file_sha256(parent / "manifest.json")
    rows = [json.loads(line) for line in (tmp_path / "v3/removed/earlier.jsonl").read_text().splitlines()]
    assert [(row["id"], row["version"], "text" in row) for row in rows] == [("b", 1, False), ("c", 1, False)]


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_redaction_that_was_followed_by_a_removal_is_done(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"".join(RAW))
    path = decisions(tmp_path / "r.jsonl", b=[(0, 3)])
    run_clean(tmp_path / "c.jsonl", path, tmp_path / "v1")
    then = removals(tmp_path / "r2.jsonl", ["b"], texts={"b": "[REDACTED]."})
    run_clean(tmp_path / "v1", then, tmp_path / "v2")
    assert corpus_of(tmp_path / "v2") == {"c.jsonl": RAW[0] + RAW[2] + RAW[3]}
    assert run_clean(tmp_path / "v2", path, tmp_path / "v3").details["already_done"] == 1


@pytest.mark.parametrize(
    "asked, text, message",
    [
        ({"b": [(0, 2)]}, "Twö.", r"1 that have another text .* \(b\)"),  # another span of what has been redacted
        ({"b": True}, "Twö.", r"1 that have another text .* \(b\)"),
        ({"c": True}, "Three!", r"1 that stand nowhere .* \(c\)"),  # another text than the one that was taken out
        ({"zz": True}, "?", r"1 that stand nowhere .* \(zz\)"),
    ],
)
def test_what_an_earlier_version_did_not_do_as_it_is_asked_is_refused(tmp_path, monkeypatch, asked, text, message):
    (tmp_path / "c.jsonl").write_bytes(b"".join(RAW))
    run_clean(tmp_path / "c.jsonl", decisions(tmp_path / "r.jsonl", b=[(0, 3)], c=True), tmp_path / "v1")
    for example_id in asked:
        monkeypatch.setitem(TEXTS, example_id, text)
    with pytest.raises(ArtifactMismatch, match=message):
        run_clean(tmp_path / "v1", decisions(tmp_path / "r2.jsonl", **asked), tmp_path / "v2")
    assert not (tmp_path / "v2").exists()


def test_erased_records_leave_hashes_alone(tmp_path):
    secret = {"s1": "Ann Quillfeather lives here.", "s2": "Bob Underwoodling lives there."}
    lines = [json.dumps({"id": i, "text": text}) + "\n" for i, text in secret.items()]
    for name, data in (("c.jsonl", "".join(lines) + RAW[2].decode()), ("d.jsonl", RAW[0].decode())):
        (tmp_path / name).write_text(data)
    rows = [
        Removal("s1", text_sha256(secret["s1"]), "approved", f"it says {secret['s1']}", "ann", request_ids=("q7",)),
        Removal("s2", text_sha256(secret["s2"]), "approved", "", action="redact", spans=((0, 17),), text=secret["s2"]),
    ]
    (tmp_path / "r.jsonl").write_bytes(removals_to_jsonl(rows))
    run_clean(tmp_path / "[cd].jsonl", str(tmp_path / "r.jsonl"), tmp_path / "kept")  # found where it is kept
    run_clean(tmp_path / "[cd].jsonl", str(tmp_path / "r.jsonl"), tmp_path / "out", erase=True)
    for word in (b"Quillfeather", b"Underwoodling"):
        assert any(word in data for data in tree(tmp_path / "kept").values())
        assert [name for name, data in tree(tmp_path / "out").items() if word in data] == []
    found = [json.loads(line) for line in (tmp_path / "out/removed/00000.jsonl").read_text().splitlines()]
    assert [(r["id"], r["sha256"], r["action"], r["row"]) for r in found] == [
        ("s1", text_sha256(secret["s1"]), "remove", 1),
        ("s2", text_sha256(secret["s2"]), "redact", 2),
    ]
    assert found[0]["request_ids"] == ["q7"] and found[1]["spans"] == [[0, 17]]


def test_erased_parquet_rows_are_not_set_aside(tmp_path):
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["One.", "Twö."]}), tmp_path / "c.parquet")
    run_clean(tmp_path / "c.parquet", decisions(tmp_path / "r.jsonl", a=True), tmp_path / "out", erase=True)
    assert os.listdir(tmp_path / "out/removed") == ["00000.jsonl"]


NO_TEXT = b'{"id": "e", "text": ""}\n'


def aligned(source: Path, attributes: Path) -> list[tuple[bytes, dict]]:
    """Each line of a document file beside its attributes, as Dolma's mixer walks them: by number, the ids compared."""
    pairs = list(zip(unpacked(source).splitlines(), unpacked(attributes).splitlines(), strict=True))
    assert all(bool(line.strip()) == bool(row) for line, row in pairs)
    found = [(line, json.loads(row)) for line, row in pairs if row]
    assert all(line == b"bad" or json.loads(line).get("id") == row["id"] for line, row in found)
    return found


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_dolma_attributes_have_a_row_for_each_row_of_the_input_in_its_order(tmp_path, name):
    lines = [RAW[0], b"\n", RAW[1], b"bad\n", NO_TEXT, RAW[0], '{"id": "ö\\"", "text": "x"}\n'.encode(), RAW[2], RAW[3]]
    with create_corpus_file(tmp_path / "in" / name) as file:
        file.write(b"".join(lines))
    path = decisions(tmp_path / "r.jsonl", b=[(0, 1), (2, 4)], c=True)
    manifest = run_clean(tmp_path / "in/*", path, tmp_path / "out", max_dead_fraction=0.4)
    assert manifest.counts == {"in": 8, "kept": 4, "removed": 1, "dead": 3}
    pairs = aligned(tmp_path / "in" / name, tmp_path / "out/attributes" / name)
    assert [row["id"] for _, row in pairs] == ["a", "b", None, "e", "a", 'ö"', "c", 4]
    marked = [row["attributes"] for _, row in pairs]
    assert marked[1] == {"proponent__redact": [[0, 1, 1.0], [2, 4, 1.0]]}
    assert marked[6] == {"proponent__remove": [[0, len("Three."), 1.0]]}
    assert [m for i, m in enumerate(marked) if i not in (1, 6)] == [{}] * 6
    info = next(info for info in manifest.files if info.name == f"attributes/{name}")
    assert info.rows == len(lines)


def test_dolma_attributes_of_parquet_stand_beside_it_as_jsonl(tmp_path):
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["x", None, "y"]}), tmp_path / "c.parquet")
    path = removals(tmp_path / "r.jsonl", ["3"], texts={"3": "y"})
    run_clean(tmp_path / "c.parquet", path, tmp_path / "out", max_dead_fraction=0.5)
    rows = [json.loads(line) for line in (tmp_path / "out/attributes/c.parquet.jsonl").read_text().splitlines()]
    assert [(r["id"], r["attributes"]) for r in rows] == [
        (1, {}),
        (2, {}),
        (3, {"proponent__remove": [[0, 1, 1.0]]}),
    ]
    assert pq.read_table(tmp_path / "out/corpus/c.parquet")["id"].to_pylist() == [1]


REPEATED = {"a.jsonl": [RAW[0], RAW[1]], "b.jsonl": [RAW[2], RAW[0], RAW[1]], "c.jsonl": [RAW[3]]}


def write_files(place: Path, files: dict[str, list[bytes]]) -> str:
    place.mkdir()
    for name, lines in files.items():
        (place / name).write_bytes(b"".join(line.rstrip() + b"\n" for line in lines))
    return str(place / "*.jsonl")


@pytest.mark.parametrize("killed", [False, True])
def test_a_repeated_id_is_refused_over_all_files_and_read_again_where_it_stands(tmp_path, monkeypatch, killed):
    corpus, reads = write_files(tmp_path / "in", REPEATED), []
    path = decisions(tmp_path / "r.jsonl", b=True)
    with pytest.raises(FailureBudgetExceeded, match=r"2 of 6 records refused"):
        run_clean(corpus, path, tmp_path / "out")

    def counted(path, *rest):
        reads.append(os.path.basename(path))
        return read_rows(path, *rest)

    monkeypatch.setattr(cleaning, "read_rows", counted)
    run_stage = clean.run_stage

    def stopped(stage, *rest):
        records = run_stage(stage, *rest)
        if stage == "again" and killed:
            raise RuntimeError("killed")
        return records

    if killed:
        monkeypatch.setattr(clean, "run_stage", stopped)
        with pytest.raises(RuntimeError, match="killed"):
            run_clean(corpus, path, tmp_path / "out", max_dead_fraction=0.5)
        monkeypatch.setattr(clean, "run_stage", run_stage)
    manifest = run_clean(corpus, path, tmp_path / "out", max_dead_fraction=0.5)
    expected_reads = ["a.jsonl", "b.jsonl", "b.jsonl", "c.jsonl"]
    assert sorted(reads) == (sorted([*expected_reads, "b.jsonl", "b.jsonl"]) if killed else expected_reads)
    assert manifest.counts == {"in": 6, "kept": 3, "removed": 1, "dead": 2}
    assert corpus_of(tmp_path / "out") == {"a.jsonl": RAW[0], "b.jsonl": RAW[2], "c.jsonl": RAW[3] + b"\n"}
    assert sorted(os.listdir(tmp_path / "out/removed")) == ["00000.jsonl"]  # b's second record is no removal
    listed = {info.name: info for info in manifest.files}
    assert {name for name in tree(tmp_path / "out") if name != "manifest.json"} == set(listed)
    for name, data in tree(tmp_path / "out").items():
        if name != "manifest.json":
            assert hashlib.sha256(data).hexdigest() == listed[name].sha256


URLS = {
    "a": "https://www.Example.org/x?y", "b": "http://example.org:80/", "c": "https://notexample.org",
    "d": "http://[broken", "e": "blog.bücher.example/post", "f": None,
}  # fmt: skip


def listed_run(tmp_path, kind: str, data: str, **options):
    rows = [{"id": i, "text": f"Text {i}.", "url": url} for i, url in URLS.items()]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "list.txt").write_text(data)
    options = {"removals_are": kind, "by": "the registry", **options}
    return run_clean(tmp_path / "c.jsonl", str(tmp_path / "list.txt"), tmp_path / "out", **options)


@pytest.mark.parametrize(
    "kind, data, taken, unmatched",
    [
        ("ids", "# ours\nb\n\na\n", ["a", "b"], 0),
        ("sha256", f"{text_sha256('Text c.').upper()}\n{'0' * 64}\n", ["c"], 1),
        ("domains", "example.org\nbücher.example\nother.example\n", ["a", "b", "e"], 1),
        ("domains", "www.example.org\n", ["a"], 0),
    ],
)
def test_lists_of_third_parties_take_records_out_with_who_and_why(tmp_path, kind, data, taken, unmatched):
    manifest = listed_run(tmp_path, kind, data)
    rows = [json.loads(line) for line in (tmp_path / "out/removed/00000.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == taken and manifest.counts["removed"] == len(taken)
    assert manifest.details["unmatched"] == unmatched
    assert {row["decided_by"] for row in rows} == {"the registry"}
    assert all(row["reason"].startswith(f"on the list list.txt of {kind}") for row in rows)
    assert (tmp_path / "out/removed_ids.txt").read_text().split() == taken


def test_a_list_that_matches_nothing_is_told_not_refused_but_for_ids(tmp_path):
    manifest = listed_run(tmp_path, "sha256", "0" * 64, reason="notice 7")
    assert manifest.counts["removed"] == 0 and manifest.details["unmatched"] == 1
    assert corpus_of(tmp_path / "out") == {"c.jsonl": (tmp_path / "c.jsonl").read_bytes()}


@pytest.mark.parametrize(
    "kind, data, options, error, message",
    [
        ("ids", "a\nzz\n", {}, ArtifactMismatch, r"found 1 that stand nowhere in the corpus \(zz\)"),
        ("ids", "a\n", {"by": " "}, ConfigError, "--by: expected the name of who answers for the list"),
        ("decisions", "", {"by": "me"}, ConfigError, "--by: expected nothing beside --removals_are decisions"),
        ("domains", "example.org\n", {"url_field": "link"}, ConfigError, "--url_field link: expected .* none of 6"),
        ("domains", "https://example.org\n", {}, ConfigError, "list.txt, line 1: expected a domain such as"),
    ],
)
def test_a_list_that_cannot_be_acted_on_is_refused(tmp_path, kind, data, options, error, message):
    with pytest.raises(error, match=message):
        listed_run(tmp_path, kind, data, **options)
    assert not (tmp_path / "out").exists()


def test_a_list_of_ids_applied_twice_is_once(tmp_path):
    listed_run(tmp_path, "ids", "b\na\n")
    options = {"removals_are": "ids", "by": "the registry"}
    again = run_clean(tmp_path / "out", str(tmp_path / "list.txt"), tmp_path / "v2", **options)
    assert again.details["already_done"] == 2 and corpus_of(tmp_path / "v2") == corpus_of(tmp_path / "out")


def test_an_id_that_no_plain_list_can_hold_is_told(tmp_path, caplog):
    (tmp_path / "c.jsonl").write_text('{"id": "#a", "text": "One."}\n{"id": "b", "text": "x"}\n')
    run_clean(tmp_path / "c.jsonl", removals(tmp_path / "r.jsonl", ["#a"], texts={"#a": "One."}), tmp_path / "out")
    assert (tmp_path / "out/removed_ids.txt").read_bytes() == b""
    assert "1 ids hold a line end or begin with #" in caplog.text
