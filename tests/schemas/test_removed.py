"""What was taken out reads back as it was written; without its text only hashes are left."""

from dataclasses import replace

from schemas.records import text_sha256
from schemas.removed import Removed, parse_removed, removed_to_jsonl

FULL = Removed(
    id="z1", sha256=text_sha256("Ann lives."), file="c.jsonl", row=3, action="redact", spans=((0, 3),),
    result_sha256="ab", kept_before=2, version=4, request_ids=("q1",), decided_by="ann", decided_at="today",
    reason="names Ann", fact_ids=("f",), group="g", text="Ann lives.", raw='{"text": "Ann lives."}\n',
)  # fmt: skip


def test_rows_read_back_as_written_and_tell_datatrove_the_reason():
    assert list(parse_removed(removed_to_jsonl([FULL]).splitlines())) == [FULL]
    assert FULL.to_row()["metadata"] == {"filter_reason": "names Ann"}


def test_hashes_alone_hold_no_word_of_the_text():
    data = removed_to_jsonl([FULL.hash_only()])
    assert b"Ann" not in data
    (back,) = parse_removed([data])
    assert back == replace(FULL, text=None, raw=None, reason=None, fact_ids=(), group="")


def test_a_row_of_an_earlier_proponent_gets_the_hash_of_its_text():
    (row,) = parse_removed([b'{"id": "a", "text": "One.", "file": "c", "row": 1, "raw": null, "reason": "r"}'])
    assert (row.sha256, row.action, row.kept_before) == (text_sha256("One."), "remove", -1)
