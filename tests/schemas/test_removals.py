"""Removals survive a round trip through the file that people edit, and a slip of theirs is refused with its line."""

import json

import pytest

from schemas.errors import ConfigError
from schemas.records import Removal
from schemas.removals import EDITED, approved, is_listable, parse_list, parse_removals, removals_to_jsonl

FULL = Removal(
    "z1",
    "ab",
    "approved",
    "false: «été»",
    "ann",
    "2025-01-01",
    "remove",
    ("f1", "f2"),
    ({"fact_id": "f1"},),
    "text\n",
)
REDACTION = Removal("z3", "ef", "approved", "", action="redact", spans=((0, 3), (3, 9)), request_ids=("q1",), group="g")
BARE = Removal("z2", "cd", "proposed", "")
ROW = {"example_id": "z", "sha256": "ab", "decision": "approved"}


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_removals_read_back_as_written():
    back = parse_removals(removals_to_jsonl([FULL, BARE, REDACTION]), "r.jsonl")
    assert back == [FULL, BARE, REDACTION]
    assert back[0].evidence == FULL.evidence  # no part of the comparison above


def test_what_people_leave_out_takes_its_default_and_what_they_add_is_ignored():
    assert parse_removals(lines({**ROW, "note": "mine"}), "r.jsonl") == [Removal("z", "ab", "approved", "")]


def test_empty_lines_and_windows_line_ends_are_read():
    data = b"\r\n" + lines(ROW).replace(b"\n", b"\r\n") + b"  \n"
    assert [r.example_id for r in parse_removals(data, "r.jsonl")] == ["z"]
    assert parse_removals(b"", "r.jsonl") == []


def test_only_approved_decisions_count_as_approved():
    decided = [Removal(d, "ab", d, "") for d in ("proposed", "approved", "rejected")]
    assert [r.example_id for r in approved(decided)] == ["approved"]


def test_an_example_decided_twice_is_refused_even_with_the_same_decision():
    with pytest.raises(ConfigError, match=r"r.jsonl, line 3: example 'z' is decided twice; keep one line"):
        parse_removals(lines(ROW) + b"\n" + lines(ROW), "r.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "example_id": ""}, "field 'example_id' must be a non-empty string, found ''"),
        ({**ROW, "example_id": 7}, "field 'example_id' must be a non-empty string, found 7"),
        ({"example_id": "z", "decision": "approved"}, "field 'sha256' must be a non-empty string, found None"),
        ({"example_id": "z", "sha256": "ab"}, "field 'decision' must be a non-empty string, found None"),
        ({**ROW, "decision": "yes"}, "field 'decision' must be proposed, approved or rejected, found 'yes'"),
        ({**ROW, "decision": "Approved"}, "must be proposed, approved or rejected, found 'Approved'"),
        ({**ROW, "action": "hide"}, "field 'action' must be remove or redact, found 'hide'"),
        ({**ROW, "action": "redact"}, r"field 'spans' must hold at least one \[start, end\] .*'redact', found none"),
        ({**ROW, "action": "redact", "spans": [[3, 3]]}, r"start before end, .*found \[3, 3\]"),
        ({**ROW, "action": "redact", "spans": [[4, 6], [1, 2]]}, r"sorted and not overlapping, found \[1, 2\]"),
        ({**ROW, "action": "redact", "spans": [[1, 4], [3, 6]]}, r"sorted and not overlapping, found \[3, 6\]"),
        ({**ROW, "action": "redact", "spans": [[-1, 4]]}, r"found \[-1, 4\]"),
        ({**ROW, "action": "redact", "spans": [[True, 4]]}, r"found \[True, 4\]"),
        ({**ROW, "action": "redact", "spans": [[1, 2, 3]]}, r"found \[1, 2, 3\]"),
        ({**ROW, "action": "redact", "spans": "1-2"}, r"field 'spans' must be a list of \[start, end\], found '1-2'"),
        ({**ROW, "spans": [[1, 2]]}, "field 'spans' must be empty for the action 'remove'"),
        ([], ""),
        (None, ""),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_field(row, message):
    good = {**ROW, "example_id": "good"}
    with pytest.raises(ConfigError, match=f"r.jsonl, line 2: not a removal: .*{message}.*; mend the line"):
        parse_removals(lines(good, row), "r.jsonl")


def test_undone_is_a_word_of_an_edited_copy_alone():
    undone = lines({**ROW, "decision": "undone"})
    with pytest.raises(ConfigError, match=r"or rejected, found 'undone', which `proponent review RUN --take` alone"):
        parse_removals(undone, "r.jsonl")
    assert parse_removals(undone, "r.jsonl", EDITED)[0].decision == "undone"
    with pytest.raises(ConfigError, match="must be proposed, approved, rejected or undone, found 'no'"):
        parse_removals(lines({**ROW, "decision": "no"}), "r.jsonl", EDITED)


def test_a_line_that_is_no_json_is_refused_with_its_number():
    with pytest.raises(ConfigError, match=r"r.jsonl, line 2: not a removal"):
        parse_removals(lines(ROW) + b'{"example_id": "y",\n', "r.jsonl")


@pytest.mark.parametrize(
    "kind, data, entries",
    [
        ("ids", b"# of the registry\n a/1#2 \r\n\nb\nb\n", ["a/1#2", "b"]),
        ("sha256", b"AB" * 32 + b"\n", ["ab" * 32]),
        ("domains", b"Example.ORG\n*.ads.example\n", ["example.org", "ads.example"]),
        ("domains", ".bücher.example.\n".encode(), ["xn--bcher-kva.example"]),
    ],
)
def test_lists_hold_one_entry_a_line_each_once(kind, data, entries):
    assert parse_list(data, "l.txt", kind) == entries


@pytest.mark.parametrize(
    "kind, data, message",
    [
        ("sha256", b"# x\nabc\n", "l.txt, line 2: expected the SHA-256 of a text, 64 hexadecimal digits, found 'abc'"),
        ("domains", b"https://example.org/\n", "line 1: expected a domain such as example.org, without scheme or path"),
        ("ids", b"#a\n\n", "expected a list of ids, one a line, found nothing in it"),
        ("ids", b"a\nb\xff\n", "expected a list in UTF-8, found byte 0xff at 3; convert it"),
    ],
)
def test_a_list_with_a_bad_line_or_nothing_is_refused(kind, data, message):
    with pytest.raises(ConfigError, match=message):
        parse_list(data, "l.txt", kind)


@pytest.mark.parametrize(
    "example_id, listable", [("a b", True), ("a#b", True), ("#a", False), (" a", False), ("a\nb", False)]
)
def test_an_id_is_listable_where_a_list_gives_it_back(example_id, listable):
    assert is_listable(example_id) is listable
    if listable:
        assert parse_list(f"{example_id}\n".encode(), "l.txt", "ids") == [example_id]
